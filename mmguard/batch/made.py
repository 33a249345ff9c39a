"""What a job keeps of one answer: all that a trainer, a curator or an auditor may ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmguard.batch.folder import digest
from mmguard.batch.items import Item
from mmguard.record import describe, retell
from mmguard.types import Guarded, Image, Request, Text

Made = dict[str, Any]


def identify(job: str, request: Request) -> str:
    """The id of a conversation's row: a hash of its words, its pictures' bytes, and its job."""
    turns = list(write_turns(request, digest))
    told = json.dumps([job, turns], sort_keys=True, default=repr)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def write_turns(request: Request, name: Callable[[Image], str]) -> Iterator[Made]:
    """The conversation as messages, each picture by its name."""
    for message in request.messages:
        parts = [write_part(part, name) for part in message.parts]
        yield {"role": message.role, "content": parts, **message.extra}


def write_part(part: Any, name: Callable[[Image], str]) -> Made:
    if isinstance(part, Image):
        return {"type": "image", "image": name(part)}
    return {"type": "text", "text": part.text if isinstance(part, Text) else repr(part)}


def make_row(item: Item, guarded: Guarded, name: Callable[[Image], str]) -> Made:
    """The row of an answer, without its id."""
    request, draft = item.request, guarded.draft
    final = "output" if guarded.step == "answer" else guarded.step
    return {
        "number": item.number,
        "messages": list(write_turns(request, name)),
        "pictures": [{"path": name(image), "sha256": digest(image)} for image in request.images],
        "answer": guarded.text,
        "action": guarded.action,
        "decision": guarded.decision,
        "step": guarded.step,
        "closed": guarded.closed,
        "finish": guarded.finish,
        "draft": draft.text if draft else None,
        "draft_score": score(guarded, "output", "stream"),
        "answer_score": None if guarded.action == "block" else score(guarded, final),
        "categories": rate(guarded),
        "captions": quote(guarded, "caption"),
        "plans": quote(guarded, "plan"),
        "trail": [describe(finding) for finding in guarded.trail],
        "calls": [retell(call, texts=False) for call in guarded.calls],
        "facts": dict(item.facts),
        "policy": guarded.policy,
    }


def quote(guarded: Guarded, stage: str) -> list[str]:
    return [call.reply.text for call in guarded.calls if call.stage == stage]


def score(guarded: Guarded, *stages: str) -> float | None:
    """The highest score of these stages."""
    found = [f.score for f in guarded.trail if f.stage in stages and not f.error]
    return max(found, default=None)


def rate(guarded: Guarded) -> Mapping[str, float]:
    """Hazards of the draft, the likeliest first, as far as any check names them."""
    found: dict[str, float] = {}
    for finding in guarded.trail:
        if finding.stage in ("input", "output", "stream") and finding.action != "pass":
            for name, value in finding.categories.items():
                found[name] = max(value, found.get(name, 0.0))
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def fault(guarded: Guarded) -> str:
    """Why this answer cannot be kept, if so: what no check has seen is no safe data."""
    # A step that failed has its own name as its stage; the next one's answer was checked.
    broken = [f for f in guarded.trail if f.error and f.detector != f.stage]
    if broken:
        return f"detector {broken[0].detector!r} failed: {broken[0].error}"
    return "" if guarded.text.strip() else "the answer is empty"
