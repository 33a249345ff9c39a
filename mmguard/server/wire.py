"""OpenAI's chat completions as values: what a body asks, what a choice says, what goes back.

Pure. Whatever is not read here is carried along untouched. Of an answer every string counts
as said, in whichever field it stands, so that no field slips by unseen.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmguard.errors import InputError
from mmguard.types import Finding, Guarded, Usage

Json = dict[str, Any]

# Strings of a message that say nothing to its reader.
MUTE = frozenset({"role", "id", "type", "call_id"})
# What a reader sees first comes first; the rest follows in its own order.
ORDER = ("reasoning_content", "reasoning", "content", "refusal", "tool_calls")


def load(data: bytes) -> Json:
    """A request's body. Raises `InputError` if it is no JSON object with messages."""
    try:
        body = json.loads(data)
    except ValueError as exc:
        raise InputError(f"the body is no JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InputError(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def count(body: Mapping[str, Any]) -> int:
    """How many choices a body asks for."""
    wanted = body.get("n")
    if wanted is None:
        return 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= 128:
        raise InputError(f"n={wanted!r}: give a whole number from 1 to 128")
    return wanted


def said(message: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string that a message or a delta says, under the path at which it stands."""
    ordered = [name for name in ORDER if name in message]
    for name in (*ordered, *(name for name in message if name not in ORDER)):
        yield from strings((name,), message[name])


def strings(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        if value and path[-1] not in MUTE:
            yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from strings((*path, str(name)), inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            # The fragments of a call that streams bear its index, and stand in lists of one.
            place = inner.get("index", i) if isinstance(inner, Mapping) else i
            yield from strings((*path, str(place)), inner)


# How much of a field is said again where its text goes on after another's.
TAIL = 200


class Spoken:
    """The text of one choice as it grows: what its fields say, a line break between fields.

    Where a field goes on after another came between, its end is said again, so that nothing
    hides by being split between turns.
    """

    def __init__(self) -> None:
        self.last: tuple[str, ...] | None = None
        self.tails: dict[tuple[str, ...], str] = {}

    def add(self, message: Mapping[str, Any]) -> str:
        """What this message or delta adds to the text."""
        return "".join([self.turn(path) + self.keep(path, text) for path, text in said(message)])

    def turn(self, path: tuple[str, ...]) -> str:
        last, self.last = self.last, path
        return "" if last in (None, path) else f"\n{self.tails.get(path, '')}"

    def keep(self, path: tuple[str, ...], text: str) -> str:
        self.tails[path] = (self.tails.get(path, "") + text)[-TAIL:]
        return text


def text_of(message: Mapping[str, Any]) -> str:
    return Spoken().add(message)


def mend(choice: Mapping[str, Any], guarded: Guarded, in_content: bool) -> Json:
    """A choice as the guard leaves it: untouched, with another text, or refused.

    `in_content`: a refusal stands in `content` too, where plain clients look.
    """
    if guarded.action == "pass":
        return dict(choice)
    blocked = guarded.action == "block"
    content = guarded.text if in_content or not blocked else None
    refusal = guarded.text if blocked else None
    message = {"role": "assistant", "content": content, "refusal": refusal}
    finish = "content_filter" if blocked else finish_of(guarded)
    return {**choice, "message": message, "logprobs": None, "finish_reason": finish}


def finish_of(guarded: Guarded) -> str:
    return guarded.finish if guarded.finish in ("stop", "length") else "stop"


def empty(model: str, kind: str = "chat.completion") -> Json:
    """A completion that no model was asked for."""
    name = f"{'chat' if kind.startswith('chat') else ''}cmpl-{uuid.uuid4().hex}"
    made = {"id": name, "object": kind, "created": int(time.time())}
    return {**made, "model": model}


def usage_of(usage: Usage) -> Json:
    total = usage.prompt + usage.completion
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": total,
    }


def add_usage(reported: Mapping[str, Any] | None, extra: Usage) -> Json:
    """The upstream's usage and that of further calls; details stay the upstream's."""
    added = usage_of(extra)
    known = dict(reported or {})
    return {**known, **{name: (known.get(name) or 0) + n for name, n in added.items()}}


def extra_usage(answers: Sequence[Guarded]) -> Usage:
    """Tokens of every call but the drafts, which the upstream counts itself."""
    calls = (call for guarded in answers for call in guarded.calls if call.stage != "draft")
    return sum((call.reply.usage for call in calls), Usage())


def account(guarded: Guarded) -> Json:
    """What the guard did about one choice, without any text."""
    blamed = [finding for finding in guarded.trail if finding.action != "pass"]
    return {
        "action": guarded.action,
        "step": guarded.step,
        "policy": guarded.policy,
        "closed": guarded.closed,
        "categories": sorted({f.category for f in blamed if f.category}),
        "images": [guarded.coverage.images, guarded.coverage.images_total],
    }


def failure(guarded: Guarded) -> Finding | None:
    """The detector's failure that a block is due to, if it is due to one."""
    blamed = next((f for f in reversed(guarded.trail) if f.action != "pass"), None)
    return blamed if guarded.action == "block" and blamed and blamed.error else None


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> Json:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def read_error(body: bytes, message: str) -> Any:
    """The upstream's own error where it sent one, in OpenAI's form where it did not."""
    try:
        return json.loads(body)
    except ValueError:
        return error(message, "upstream_error")


def headers(answers: Sequence[Guarded]) -> dict[str, str]:
    """What a caller can see of the guard's work without reading the body."""
    if not answers:
        return {}
    worst = max(answers, key=lambda g: ("pass", "repair", "block").index(g.action))
    categories = sorted({name for g in answers for name in account(g)["categories"]})
    seen = worst.coverage
    return {
        "x-mmguard-decision": worst.action,
        "x-mmguard-policy": worst.policy,
        "x-mmguard-categories": ",".join(categories),
        "x-mmguard-images": f"{seen.images}/{seen.images_total}",
    }
