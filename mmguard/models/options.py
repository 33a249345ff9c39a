"""Generation options in OpenAI's names or transformers', as arguments for `generate`.

Shared by every adapter whose model runs in this process. An option that nobody here knows
is an error rather than a silent no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmguard.errors import InputError
from mmguard.prompts import JUDGE_OPTIONS

# Fields of a body, or of a call of `generate`, that do not change what this model answers.
IGNORED = frozenset(
    {
        "logprobs",
        "metadata",
        "model",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "return_dict_in_generate",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
COUNTS = frozenset({"n", "num_return_sequences"})
LENGTHS = frozenset({"max_completion_tokens", "max_new_tokens", "max_tokens"})
PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})
# Arguments of `generate` that are no field of its config: objects that may keep a state.
HOOKS = frozenset({"logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria"})
# How many first tokens `logprobs` alone asks for.
TOP = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How one batch is generated: arguments for `generate`, stop strings, seed, first tokens.

    `judges`: it is the judge's question, whose asker reads one token where one says it all.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top: int = 0
    judges: bool = False


def plan(options: Mapping[str, Any], known: frozenset[str]) -> Plan:
    """The plan for these options; `known` are the names that the model's `generate` takes.

    Raises `InputError` naming an option that means nothing here, or whose value does not.
    """
    arguments: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None and name not in IGNORED:
            arguments |= translate(name, value, known)
    return Plan(
        stop=arguments.pop("stop_strings", ()),
        seed=arguments.pop("seed", None),
        top=arguments.pop("top_logprobs", 0) or (TOP if options.get("logprobs") else 0),
        arguments=arguments,
        judges=dict(options) == JUDGE_OPTIONS,
    )


def translate(name: str, value: Any, known: frozenset[str]) -> dict[str, Any]:
    """One option as arguments of `generate`, stop strings, a seed or `top_logprobs`."""
    if name in COUNTS:
        return single(name, value)
    if name in PENALTIES:
        return unpenalised(name, value)
    if name in LENGTHS:
        return {"max_new_tokens": whole(name, value, 1)}
    if name == "temperature":
        return heat(value)
    if name in ("stop", "stop_strings"):
        return {"stop_strings": words(name, value)}
    if name in ("seed", "top_logprobs"):
        return {name: whole(name, value, 0)}
    if name in known or name in HOOKS:
        return {name: value}
    raise InputError(f"option {name!r} means nothing to a model in this process: remove it")


def single(name: str, value: Any) -> dict[str, Any]:
    if value != 1:
        raise InputError(f"{name}={value!r}: this model gives one answer a call; ask it again")
    return {}


def unpenalised(name: str, value: Any) -> dict[str, Any]:
    if value:
        raise InputError(
            f"option {name!r} means nothing to a model in this process: use repetition_penalty"
        )
    return {}


def heat(value: Any) -> dict[str, Any]:
    """OpenAI's temperature, where 0 means the most probable token and more means drawing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InputError(f"temperature={value!r}: give a number from 0 up")
    return {"do_sample": True, "temperature": float(value)} if value else {"do_sample": False}


def whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: give a whole number from {least} up")
    return value


def words(name: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(word, str) for word in found):
        raise InputError(f"{name}={value!r}: give a string or a list of strings")
    return tuple(word for word in found if word)


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether there was one."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of a stream may be the start of a stop string."""
    sizes = (n for word in stop for n in range(1, len(word)) if text.endswith(word[:n]))
    return max(sizes, default=0)
