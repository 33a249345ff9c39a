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
    "detectors": {
        "llama-guard-3-1b": "mmguard.detect.named:llama_guard_3_1b",
        "llama-guard-3-8b": "mmguard.detect.named:llama_guard_3_8b",
        "llama-guard-3-11b-vision": "mmguard.detect.named:llama_guard_3_11b_vision",
        "llama-guard-4-12b": "mmguard.detect.named:llama_guard_4_12b",
        "qwen3guard-gen-0.6b": "mmguard.detect.named:qwen3guard_gen_0_6b",
        "qwen3guard-gen-4b": "mmguard.detect.named:qwen3guard_gen_4b",
        "qwen3guard-gen-8b": "mmguard.detect.named:qwen3guard_gen_8b",
        "shieldgemma-2b": "mmguard.detect.named:shieldgemma_2b",
        "shieldgemma-9b": "mmguard.detect.named:shieldgemma_9b",
        "shieldgemma-27b": "mmguard.detect.named:shieldgemma_27b",
        "granite-guardian-3.1-2b": "mmguard.detect.named:granite_guardian_3_1_2b",
        "granite-guardian-3.1-8b": "mmguard.detect.named:granite_guardian_3_1_8b",
        "granite-guardian-3.2-5b": "mmguard.detect.named:granite_guardian_3_2_5b",
        "granite-guardian-3.3-8b": "mmguard.detect.named:granite_guardian_3_3_8b",
        "openai-moderation": "mmguard.detect.named:openai_moderation",
    },
    "kinds": {
        "classifier": "mmguard.detect.classifier:load",
        "encoder": "mmguard.detect.encoder:load",
        "guard": "mmguard.detect.guards:load",
        "linear": "mmguard.detect.linear:load",
        "moderation": "mmguard.detect.moderation:load",
        "phrases": "mmguard.detect.phrases:load",
    },
    "models": {
        "detoxifier": "mmguard.models.embedded:detoxifier",
        "embedded": "mmguard.models.embedded:EmbeddedModel",
        "embedded-conscience": "mmguard.models.embedded:conscience",
        "hf": "mmguard.models.hf:HFModel",
        "openai": "mmguard.models.openai:OpenAIModel",
        "scripted": "mmguard.models.scripted:ScriptedModel",
    },
    "steps": {
        "caption": "mmguard.steps:caption",
        "detoxify": "mmguard.steps:detoxify",
        "excise": "mmguard.steps:excise",
        "resample": "mmguard.steps:resample",
        "resume": "mmguard.steps:resume",
        "rewrite": "mmguard.steps:rewrite",
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
