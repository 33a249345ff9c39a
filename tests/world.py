"""A scripted world: a picture brings out harm, words alone do not.

`BAD` marks harm in a text; the detector finds it, and nothing else does.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image as pil

from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.policy import Policy, load_policy
from mmguard.runtime import Local, connect
from mmguard.types import (
    AnyRequest,
    Detector,
    Finding,
    Image,
    Message,
    Model,
    Opaque,
    Part,
    Reply,
    Request,
    Sample,
    Text,
    Usage,
)

BAD = "BAD"
WORDS = {"low": 0.8, "medium": 0.5, "high": 0.2}


def png(width: int = 6, height: int = 4, color: str = "red") -> bytes:
    buffer = io.BytesIO()
    pil.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = Image(png())


def ask(text: str = "what is this?", *parts: Part, **options: Any) -> Request:
    return Request((Message("user", (*parts, Text(text))),), options)


SEEN = ask("what is this?", PICTURE)
UNREADABLE = ask("listen", Opaque("audio"))


def words(request: AnyRequest) -> str:
    return " ".join(p.text for m in request.messages for p in m.parts if isinstance(p, Text))


def tempted(request: AnyRequest) -> str | Reply:
    """Harmful with the picture, harmless without; a rewrite drops the harm."""
    asked = words(request)
    if "Do not answer it" in asked:
        return Reply("a red square", usage=Usage(3, 3))
    if "Write the answer anew" in asked:
        return Reply("a mended answer", usage=Usage(5, 3))
    text = f"{BAD} advice, in full" if request.images else "a harmless answer"
    return Reply(text, usage=Usage(2, 4))


def harm(sample: Sample) -> Finding:
    text = sample.request.text if sample.reply is None else sample.reply
    score = 0.9 if BAD in text else 0.1
    return Finding("harm", score, categories={"hate": score}, chars=sample.chars)


def harm_detector() -> ScriptedDetector:
    return ScriptedDetector(harm, name="harm", thresholds=WORDS)


def make_policy(**fields: Any) -> Policy:
    return load_policy({"output": [{"detector": "harm"}], **fields})


def make_world(
    policy: Policy | None = None,
    *,
    target: Model | None = None,
    models: Mapping[str, Model] | None = None,
    detectors: Sequence[Detector] | None = None,
    timeout: float | None = None,
) -> tuple[Policy, Local]:
    """A bound policy and the runtime that serves it."""
    named = {d.name: d for d in (detectors if detectors is not None else [harm_detector()])}
    every = {**(models or {}), "target": target or ScriptedModel(tempted)}
    return connect(policy or make_policy(), every, named, timeout=timeout)
