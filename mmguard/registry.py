"""One door for everything that has a name: built-ins and entry points alike.

A target is `module:attribute`, imported at the first look-up, so that naming a heavy
adapter costs nothing. Packages add names under the entry-point groups
`mmguard.detectors`, `mmguard.models`, `mmguard.steps` and `mmguard.kinds`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mmguard.errors import MmguardError, UnknownName

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["detectors", "kinds", "models", "steps"]

BUILTIN: dict[Kind, dict[str, str]] = {
    "detectors": {},
    "kinds": {
        "encoder": "mmguard.detect.encoder:load",
        "linear": "mmguard.detect.linear:load",
        "phrases": "mmguard.detect.phrases:load",
    },
    "models": {
        "embedded": "mmguard.models.embedded:EmbeddedModel",
        "hf": "mmguard.models.hf:HFModel",
        "openai": "mmguard.models.openai:OpenAIModel",
        "scripted": "mmguard.models.scripted:ScriptedModel",
    },
    "steps": {
        "caption": "mmguard.steps:caption",
        "detoxify": "mmguard.steps:detoxify",
        "resample": "mmguard.steps:resample",
    },
}


class PluginError(MmguardError):
    """An entry point that is installed but does not load."""


@cache
def plugins(kind: Kind) -> dict[str, EntryPoint]:
    # A sixth of the time of `import mmguard`, were it imported above.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"mmguard.{kind}")}


def names(kind: Kind) -> list[str]:
    """Every registered name of this kind, sorted."""
    return sorted({*BUILTIN[kind], *plugins(kind)})


@cache
def find(kind: Kind, name: str) -> Any:
    """What `name` stands for; raises `UnknownName` or `PluginError`."""
    if target := BUILTIN[kind].get(name):
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)
    if point := plugins(kind).get(name):
        return load(point)
    raise UnknownName(kind.removesuffix("s"), name, names(kind))


def load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as exc:
        raise PluginError(
            f"plugin {point.name!r} ({point.value}) does not load: {exc!r}; fix or uninstall it"
        ) from exc
