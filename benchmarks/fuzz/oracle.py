"""What a caller hears in an answer, read without a line of the code under test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.test_sse import reference

Path = tuple[str, ...]
# Names, kinds and numbers, which no reader takes for words.
DUMB = frozenset({"role", "id", "type", "call_id", "signature", "media_type", "tool_use_id"})
# Beside a choice's message: why it ended, what a filter thought, how likely its tokens were.
BESIDE = frozenset(
    {
        "content_filter_results",
        "finish_reason",
        "index",
        "logprobs",
        "prompt_logprobs",
        "stop_reason",
    }
)
KINDS = ("message", "content_block_start", "content_block_delta", "content_block_stop")


def heard(answer: bytes, streams: bool) -> dict[Path, str]:
    """Every field of every choice, its pieces joined in the order in which they came."""
    found: dict[Path, str] = {}
    for body in bodies(answer, streams):
        for path, text in told(body):
            found[path] = found.get(path, "") + text
    return found


def bodies(answer: bytes, streams: bool) -> Iterator[dict[str, Any]]:
    for data in reference(answer) if streams else [answer]:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict):
            yield body


def told(body: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """The words of one body: those of its choices, or of an event or message of Anthropic's."""
    choices = body.get("choices")
    for i, choice in enumerate(choices if isinstance(choices, list) else []):
        if isinstance(choice, dict):
            index = str(choice.get("index", i))
            fields = {name: inner for name, inner in choice.items() if name not in BESIDE}
            yield from walk((index,), fields)
    if not choices:
        # A client leaves an event aside whose kind it does not know.
        kind = "" if body.get("type") in KINDS else str(body.get("type"))
        for name in ("content", "content_block", "delta"):
            yield from walk((kind, str(body.get("index"))), body.get(name))


def walk(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    waiting = [(path, value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            if path[-1] not in DUMB or "arguments" in path or "input" in path:
                yield path, value
        elif isinstance(value, dict):
            # A streamed piece and the whole of it go by one name.
            waiting += [((*path, name), inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list):
            placed = [(place(inner, i), inner) for i, inner in enumerate(value)]
            waiting += [((*path, name), inner) for name, inner in reversed(placed)]


def place(inner: Any, i: int) -> str:
    return str(inner.get("index", i) if isinstance(inner, dict) else i)
