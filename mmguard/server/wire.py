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
from urllib.parse import quote

from mmguard.errors import InputError
from mmguard.types import Finding, Guarded, Usage

Json = dict[str, Any]

# Strings of a message that say nothing to its reader.
MUTE = frozenset({"role", "id", "type", "call_id"})
# What a reader sees first comes first; the rest follows in its own order.
ORDER = ("reasoning_content", "reasoning", "content", "refusal", "tool_calls")


def load(data: bytes) -> Json:
    """A request's body. Raises `InputError` if it is no JSON object, or reads in two ways."""
    try:
        body = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"the body is no JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InputError(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def once(pairs: list[tuple[str, Any]]) -> Json:
    """An object none of whose fields stands twice: of such a one, others may read the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return found


def plain(data: bytes) -> bool:
    """Whether JSON is UTF-8, as servers expect it."""
    return json.detect_encoding(data) == "utf-8"


def dump(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half a character, cut out of its pair: JSON can spell it, UTF-8 cannot.
        return json.dumps(value, separators=(",", ":")).encode()


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
    """In order and in any depth, without recursion."""
    waiting = [(path, value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            if value and (path[-1] not in MUTE or "arguments" in path):
                yield path, value
        else:
            waiting += reversed([((*path, name), inner) for name, inner in inside(value)])


def inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            # The fragments of a call that streams bear its index, and stand in lists of one.
            yield str(inner.get("index", i) if isinstance(inner, Mapping) else i), inner


# How much of a field is said again where its text goes on after another's.
TAIL = 200


class Spoken:
    """The text of one choice as it grows: what its fields say, a line break between fields.

    Where a field goes on after another came between, its end is said again, so that nothing
    hides by being split between turns. `lead` is how much of what was added last is no field's.
    """

    def __init__(self) -> None:
        self.last: tuple[str, ...] | None = None
        self.lead = 0
        self.tails: dict[tuple[str, ...], str] = {}

    def add(self, message: Mapping[str, Any]) -> str:
        """What this message or delta adds to the text."""
        pieces = [(self.turn(path), self.keep(path, text)) for path, text in said(message)]
        self.lead = len(pieces[0][0]) if pieces else 0
        return "".join(turn + text for turn, text in pieces)

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

    Of a text that does not leave, nothing else that the server said about it does.
    `in_content`: a refusal stands in `content` too, where plain clients look.
    """
    if guarded.action == "pass":
        return dict(choice)
    blocked = guarded.action == "block"
    content = guarded.text if in_content or not blocked else None
    refusal = guarded.text if blocked else None
    message = {"role": "assistant", "content": content, "refusal": refusal}
    finish = "content_filter" if blocked else finish_of(guarded)
    known = {"index": choice["index"]} if "index" in choice else {}
    return {**known, "message": message, "logprobs": None, "finish_reason": finish}


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


def add_usage(reported: Any, extra: Usage) -> Json:
    """The upstream's usage and that of further calls; details stay the upstream's."""
    known = reported if isinstance(reported, Mapping) else {}
    return {**known, **{name: number(known.get(name)) + n for name, n in usage_of(extra).items()}}


def number(value: Any) -> int:
    return value if isinstance(value, int) else 0


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
        found = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else error(message, "upstream_error")


def no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def spell(name: str) -> str:
    """A name as a header can hold it: whatever is not plain ASCII is percent-encoded."""
    return quote(name, safe=" !#$&'()*+,/:;=?@[]{}|")


def headers(answers: Sequence[Guarded]) -> dict[str, str]:
    """What a caller can see of the guard's work without reading the body."""
    if not answers:
        return {}
    worst = max(answers, key=lambda g: ("pass", "repair", "block").index(g.action))
    categories = sorted({name for g in answers for name in account(g)["categories"]})
    seen = worst.coverage
    return {
        "x-mmguard-decision": worst.action,
        "x-mmguard-policy": spell(worst.policy),
        "x-mmguard-categories": spell(",".join(categories)),
        "x-mmguard-images": f"{seen.images}/{seen.images_total}",
    }
