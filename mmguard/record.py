"""The audit line of one `Guarded`: what was decided and why, without anybody's words.

Texts appear as lengths and hashes only, unless the caller asks for them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from mmguard.types import Call, Finding, Guarded


def record(guarded: Guarded, *, texts: bool = False) -> dict[str, Any]:
    """A mapping that `json.dumps` takes. `texts=True` adds the answer and every model's reply."""
    line: dict[str, Any] = {
        "policy": guarded.policy,
        "action": guarded.action,
        "decision": guarded.decision,
        "step": guarded.step,
        "closed": guarded.closed,
        "finish": guarded.finish,
        "coverage": asdict(guarded.coverage),
        "usage": asdict(guarded.usage),
        "answer": digest(guarded.text, texts),
        "trail": [describe(finding) for finding in guarded.trail],
        "calls": [retell(call, texts) for call in guarded.calls],
    }
    return line


def digest(text: str, texts: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "chars": len(text),
        "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    }
    return {**found, "text": text} if texts else found


def describe(finding: Finding) -> dict[str, Any]:
    kept = {**asdict(finding), "ms": round(finding.ms, 3)}
    return {name: value for name, value in kept.items() if value not in ("", {}, None)}


def retell(call: Call, texts: bool) -> dict[str, Any]:
    reply = call.reply
    return {
        "stage": call.stage,
        "model": call.model,
        "finish": reply.finish,
        "ms": round(reply.ms, 3),
        "usage": asdict(reply.usage),
        "reply": digest(reply.text, texts),
    }
