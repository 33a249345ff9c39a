"""`mmguard policies explain`: which policy a sidecar's request is under, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmguard.cli.console import Json, show
from mmguard.errors import InputError, MissingExtra, UnknownName
from mmguard.policy import load_policy

if TYPE_CHECKING:
    from mmguard.server.settings import Settings

CHAT = "/v1/chat/completions"


def explain(
    config: Annotated[Path, typer.Option(help="The sidecar's YAML file of settings.")],
    key: Annotated[str, typer.Option(help="The name of a key, not the key itself.")] = "",
    model: Annotated[str, typer.Option(help="The model that the request asks for.")] = "",
    route: Annotated[str, typer.Option(help="Where the request is posted.")] = CHAT,
    as_json: Json = False,
) -> None:
    """Tell which policy a sidecar's request is under, why, and which rules did not fit."""
    try:
        from mmguard.server.app import paths
    except ImportError as exc:
        raise MissingExtra("fastapi", "server", "the sidecar") from exc
    from mmguard.server.attach import check_routes, choose
    from mmguard.server.settings import load_settings

    settings = load_settings(config, {})
    check_routes(settings.attach, paths())
    if route not in paths():
        raise UnknownName("route", route, paths())
    check_key(settings, key)
    tags = {name: load_policy(name).tag for name in settings.policies}
    found = choose(settings, key, model, route)
    if as_json:
        told = {"policy": found.policy, "tag": tags[found.policy], "why": found.why}
        show({**told, "missed": list(found.missed)})
        return
    lines = [f"{tags[found.policy]}: {found.why}", *(f"  not {why}" for why in found.missed)]
    typer.echo("\n".join(lines))


def check_key(settings: Settings, key: str) -> None:
    if key and key not in settings.keys:
        raise UnknownName("key", key, settings.keys)
    if settings.keys and not key:
        raise InputError("nobody is answered without a key: name one by --key")
