"""What the audit keeps of one request: rows of decisions, hashes, and words only if asked.

Without `texts` nothing that a caller, a model or a failure said is kept: errors by the name
of their kind, reasons not at all. A plain hash still lets whoever has a text check a guess.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmguard import errors
from mmguard.record import record
from mmguard.server.settings import Redaction
from mmguard.server.thumbnails import shrink
from mmguard.server.visit import Visit, number
from mmguard.types import SPELLED, Guarded, Image, Message, Request, Text

COLUMNS = frozenset({"policy", "action", "decision", "step", "trail"})
Row = tuple[Any, ...]
Redact = Callable[[str], str]
WORDY = frozenset({"text", "reason", "error", "label"})
LABELS = frozenset({"safe", "harmful", "error", "skipped", "tried"})
FINISHES = frozenset({"stop", "length", "content_filter", "tool_calls", "function_call", "cut"})
KINDS = frozenset(
    name
    for module in (builtins, errors)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Exception)
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A request's decided choices, by their place; all else is worked out when it is written."""

    visit: Visit
    seconds: float
    request: Request
    answers: Mapping[int, Guarded]
    usage: Mapping[str, Any] | None = None

    @property
    def weight(self) -> int:
        """About how many bytes wait with it."""
        pictures = sum(len(image.data) for image in self.request.images)
        answers = sum(len(guarded.text) for guarded in self.answers.values())
        return 4096 + pictures + len(self.request.text) + answers

    def rows(self, texts: bool, rules: Sequence[Redaction], pictured: bool = False) -> list[Row]:
        """One row a choice; the tokens of the drafts stand with the first."""
        hidden = redactor(rules)
        small = shrink(self.request.images) if pictured else []
        pictures = [sha(image.data) for image in self.request.images]
        shared = hash_request(self.request), json.dumps(pictures)
        rows = []
        for place, (index, guarded) in enumerate(self.answers.items()):
            line = record(guarded, texts=texts)
            if texts:
                line["request"] = words(self.request)
            line = bound(redact(line, hidden) if texts else silence(line))
            if small:
                line["thumbnails"] = small
            usage = self.usage if place == 0 else None
            rows.append(self.row(index, guarded, line, (*shared, *tokens(guarded, usage))))
        return rows

    def row(self, index: int, guarded: Guarded, line: dict[str, Any], more: Row) -> Row:
        visit, trail = self.visit, line["trail"]
        detail = {name: value for name, value in line.items() if name not in COLUMNS}
        named = {f.category for f in guarded.trail if f.action != "pass" and f.category}
        spent = sum(finding.ms for finding in guarded.trail)
        return (
            *(visit.begun, visit.id, index, visit.route, visit.key),
            *(guarded.policy, guarded.action, guarded.decision, guarded.step),
            *(json.dumps(value, default=float) for value in (sorted(named), trail, detail)),
            *more,
            *(round(self.seconds * 1e3, 3), round(spent, 3)),
        )


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_request(request: Request) -> str:
    """One hash of who said what and showed which pictures, in order."""
    told = [[m.role, [tell(part) for part in m.parts]] for m in request.messages]
    return sha(json.dumps(told).encode())


def tell(part: Any) -> Any:
    if isinstance(part, Text):
        return part.text
    return [sha(part.data)] if isinstance(part, Image) else [part.kind]


def words(request: Request) -> list[dict[str, str]]:
    return [{"role": m.role, "text": spoken(m)} for m in request.messages]


def spoken(message: Message) -> str:
    """The words of a message; a picture that is spelled out in them is none."""
    return SPELLED.sub("(a picture)", message.text)


def tokens(guarded: Guarded, usage: Mapping[str, Any] | None) -> tuple[int, int]:
    prompt, completion = number(usage, "prompt_tokens"), number(usage, "completion_tokens")
    own = asdict(guarded.usage)
    return prompt + number(own, "prompt"), completion + number(own, "completion")


# -- what may be said -----------------------------------------------------------


def silence(line: dict[str, Any]) -> dict[str, Any]:
    """An audit line without a word of anybody's."""
    return {**line, "trail": [mute(finding) for finding in line["trail"]]}


def mute(finding: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in finding.items() if name not in WORDY}
    if finding.get("label") in LABELS:
        kept["label"] = finding["label"]
    if error := finding.get("error"):
        kept["error"] = kind_of(str(error))
    return kept


def kind_of(error: str) -> str:
    """The known name of a failure, without what it says."""
    kind = error.partition(":")[0]
    return kind if kind in KINDS else "error"


def bound(line: dict[str, Any]) -> dict[str, Any]:
    """An audit line in which what a server calls the end of an answer is a known word."""
    calls = [{**call, "finish": ending(call["finish"])} for call in line["calls"]]
    return {**line, "finish": ending(line["finish"]), "calls": calls}


def ending(finish: str) -> str:
    return finish if finish in FINISHES else "other"


def redactor(rules: Sequence[Redaction]) -> Redact:
    """All rules, one after another."""
    compiled = [(re.compile(rule.pattern), rule.replacement) for rule in rules]

    def hide(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return hide


def redact(value: Any, hide: Redact) -> Any:
    """The value with its words redacted, its hashes and numbers left."""
    if isinstance(value, dict):
        return {
            name: hide(inner) if name in WORDY and isinstance(inner, str) else redact(inner, hide)
            for name, inner in value.items()
        }
    return [redact(inner, hide) for inner in value] if isinstance(value, list) else value
