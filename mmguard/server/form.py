"""The two forms in which OpenAI's servers complete: chats, and the older plain texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmguard.server import wire
from mmguard.types import Guarded

Choice = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """Where a choice stands and what it says: `whole` and `piece` give the fields that speak.

    `mend` writes a guarded choice, `write` a delta of the guard's own. `bare`: a refusal has
    no place but the text.
    """

    path: str
    kind: str
    chunk: str
    whole: Callable[[Choice], Any]
    piece: Callable[[Choice], Any]
    mend: Callable[[Choice, Guarded, bool], wire.Json]
    write: Callable[[Choice], wire.Json]
    bare: bool = False


# Fields of a choice that say nothing, say it once more, or are a filter's own.
SILENT = frozenset(
    {
        "content_filter_results",
        "finish_reason",
        "index",
        "logprobs",
        "prompt_logprobs",
        "stop_reason",
    }
)


def speaking(choice: Choice) -> Choice:
    return {name: value for name, value in choice.items() if name not in SILENT}


def message(choice: Choice) -> Choice | None:
    """What a choice says: its message, and whatever a server puts beside it."""
    beside = dict(speaking(choice))
    said = beside.pop("message", None)
    return join(said, beside) if isinstance(said, Mapping) else None


def join(said: Choice, beside: Choice) -> Choice:
    """Both; what stands beside under a name of its own, lest a field hide its namesake."""
    if not beside:
        return said
    name = "beside"
    while name in said:
        name += "_"
    return {**said, name: beside}


def fragment(choice: Choice) -> Choice:
    """What a chunk says of its choice: the delta, and whatever a server sends beside it."""
    beside = dict(speaking(choice))
    delta = beside.pop("delta", None)
    return join(delta if isinstance(delta, Mapping) else {}, beside)


CHAT = Form(
    "chat/completions",
    "chat.completion",
    "chat.completion.chunk",
    message,
    fragment,
    wire.mend,
    lambda delta: {"delta": delta},
)


def mend(choice: Choice, guarded: Guarded, in_content: bool) -> wire.Json:
    """A plain choice as the guard leaves it: untouched, with another text, or refused."""
    if guarded.action == "pass":
        return dict(choice)
    finish = "content_filter" if guarded.action == "block" else wire.finish_of(guarded)
    said = {"text": guarded.text, "logprobs": None, "finish_reason": finish}
    return {"index": choice.get("index", 0), **said}


PLAIN = Form(
    "completions",
    "text_completion",
    "text_completion",
    lambda choice: speaking(choice) if isinstance(choice.get("text"), str) else None,
    speaking,
    mend,
    lambda delta: {"text": delta.get("content", ""), "logprobs": None},
    bare=True,
)
