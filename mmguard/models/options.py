"""Generation options in OpenAI's names or transformers', as arguments for `generate`.

Shared by every adapter whose model runs in this process. An option that nobody here knows
is an error rather than a silent no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmguard.errors import InputError

# Fields of an OpenAI body that say nothing about how this model generates.
IGNORED = frozenset(
    {"logprobs", "metadata", "model", "n", "store", "stream", "stream_options", "user"}
)
LENGTHS = ("max_tokens", "max_completion_tokens")
PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})


@dataclass(frozen=True, slots=True)
class Plan:
    """How one batch is generated: arguments for `generate`, stop strings, seed, first tokens."""

    arguments: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top: int = 0


def plan(options: Mapping[str, Any], known: frozenset[str]) -> Plan:
    """The plan for these options; `known` are the names that the model's `generate` takes.

    Raises `InputError` naming an option that means nothing here.
    """
    arguments: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name in IGNORED or (name in PENALTIES and not value):
            continue
        arguments.update(translate(name, value, known))
    stop = arguments.pop("stop_strings", None) or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    top = arguments.pop("top_logprobs", 0)
    seed = arguments.pop("seed", None)
    wanted = top or (20 if options.get("logprobs") else 0)
    if (n := options.get("n")) not in (None, 1):
        raise InputError(f"n={n!r}: this model gives one answer a call; ask it {n} times")
    return Plan(arguments, stop, seed, wanted)


def translate(name: str, value: Any, known: frozenset[str]) -> dict[str, Any]:
    if name in LENGTHS:
        return {"max_new_tokens": value}
    if name == "temperature":
        return {"do_sample": True, "temperature": value} if value else {"do_sample": False}
    if name in ("stop", "stop_strings"):
        return {"stop_strings": value}
    if name in ("seed", "top_logprobs") or name in known:
        return {name: value}
    raise InputError(f"option {name!r} means nothing to a model in this process: remove it")


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether there was one."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of a stream may be the start of a stop string."""
    sizes = (n for word in stop for n in range(1, len(word)) if text.endswith(word[:n]))
    return max(sizes, default=0)
