"""`mmguard policies` and `mmguard detectors`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Any

import typer
import yaml

from mmguard.bundles import Bundle, load_bundle, shipped
from mmguard.cli.console import Json, show, tabulate
from mmguard.policy import load_policy, presets, schema

policies = typer.Typer(help="List the policies, or show one.", no_args_is_help=False)


@policies.callback(invoke_without_command=True)
def list_policies(context: typer.Context, as_json: Json = False) -> None:
    """List the policies that came with mmguard, or show one."""
    if context.invoked_subcommand:
        return
    loaded = [load_policy(name) for name in presets()]
    if as_json:
        show([{"name": p.name, "tag": p.tag, "description": p.description} for p in loaded])
    else:
        tabulate("policies", ("name", "what it does"), ((p.name, p.description) for p in loaded))


@policies.command("show")
def show_policy(name: str, as_json: Json = False) -> None:
    """Print a policy with all that it extends and every default filled in."""
    policy = load_policy(name)
    resolved = policy.model_dump(mode="json")
    if as_json:
        show({**resolved, "tag": policy.tag})
    else:
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=96)
        typer.echo(f"# {policy.tag}\n{text}", nl=False)


@policies.command("schema")
def show_schema() -> None:
    """Print the JSON schema of policy files."""
    typer.echo(json.dumps(schema(), indent=2))


GUARD = "a guard of others: its weights, or its service, are not part of mmguard"


def detectors(as_json: Json = False) -> None:
    """List the detectors that can be named in a policy."""
    from mmguard import registry

    bundles = [load_bundle(name) for name in shipped()]
    builtin = registry.BUILTIN["detectors"]
    named = [{"name": name, "plugin": name not in builtin} for name in registry.names("detectors")]
    if as_json:
        show([*(bundle.manifest.model_dump(mode="json") for bundle in bundles), *named])
        return
    lines = [describe(bundle) for bundle in bundles]
    lines += [(n["name"], "", "", "from a plugin" if n["plugin"] else GUARD) for n in named]
    tabulate("detectors", ("name", "version", "low / medium / high", "what it does"), lines)


def describe(bundle: Bundle) -> tuple[Any, ...]:
    words = " / ".join(
        f"{bundle.thresholds[w]:.2f}" for w in ("low", "medium", "high") if w in bundle.thresholds
    )
    return bundle.name, bundle.manifest.version, words, bundle.manifest.description
