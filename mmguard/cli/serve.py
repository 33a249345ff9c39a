"""`mmguard serve`: the sidecar before an OpenAI-compatible server."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mmguard.cli.console import err
from mmguard.errors import MissingExtra

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

    from mmguard.server.settings import Settings


def serve(
    upstream: Annotated[
        str | None, typer.Option(help="The server's URL, up to and with /v1.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of this process instead, such as embedded.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A preset or a policy file.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen at; 0: any.")] = None,
    workers: Annotated[int | None, typer.Option(help="How many processes; each is whole.")] = None,
) -> None:
    """Guard every answer of an OpenAI-compatible server; clients change their base URL only."""
    try:
        from mmguard.server.settings import load_settings
    except ImportError as exc:
        raise MissingExtra("fastapi and uvicorn", "server", "the sidecar") from exc
    from mmguard.cli.workers import supervise

    flags = {"upstream": upstream, "model": model, "policy": policy, "host": host, "port": port}
    settings = load_settings(config, {**flags, "workers": workers})
    server = open_server(settings, open_app(settings)) if settings.workers == 1 else None
    told = f"guarding {settings.upstream or settings.model} by {settings.policy}"
    err.print(f"{escape(told)} at http://{settings.host}:{settings.port}/v1", soft_wrap=True)
    if settings.operator_key:
        err.print(f"the operator's page: http://{settings.host}:{settings.port}/ui", soft_wrap=True)
    with suppress(KeyboardInterrupt):
        server.run() if server else supervise(settings)


def open_app(settings: Settings) -> FastAPI:
    from mmguard.server.app import make_app

    app = make_app(settings, **inner(settings))
    if settings.access_log:
        tell_access()
    return app


def open_server(settings: Settings, app: FastAPI) -> Server:
    """A server of requests that ends in time when it is told to."""
    import uvicorn

    from mmguard.server.heads import heads_within

    config = uvicorn.Config(
        app,
        http=heads_within(settings.upload_timeout),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=settings.drain_timeout,
    )
    return uvicorn.Server(config)


def tell_access() -> None:
    """A line of JSON on standard output for each request, without content."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("mmguard.server.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def inner(settings: Settings) -> dict[str, Any]:
    """A model of this process in the upstream's place, if one is named."""
    if settings.model is None:
        return {}
    from mmguard.models import open_model
    from mmguard.server.local import ModelTransport

    return {"atransport": ModelTransport(open_model(settings.model))}
