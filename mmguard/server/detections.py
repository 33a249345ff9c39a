"""The detector API of the FMS guardrails orchestrator: which sentences a policy would not pass.

Whether a text is harmful its whole decides, as everywhere; which sentences are, each by
itself. Where no sentence is, the whole text is the place. Places count characters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request as Call
from fastapi.responses import JSONResponse, Response

from mmguard.drive import AsyncRuntime
from mmguard.errors import InputError, MmguardError
from mmguard.policy import Policy
from mmguard.sentences import Span, split
from mmguard.server import wire
from mmguard.server.assess import assess
from mmguard.server.failures import tell
from mmguard.server.moderations import UNSAFE
from mmguard.server.sidecar import Sidecar
from mmguard.types import Finding, Text

MOST = 1024
# Of a text with more sentences the whole is the place.
SENTENCES = 256


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/api/v1/text/contents")
    async def contents(call: Call) -> Response:
        try:
            told = {"x-mmguard-policy": wire.spell(sidecar.policy(call).tag)}
            return JSONResponse(await answered(sidecar, call), headers=told)
        except MmguardError as exc:
            status, body, headers = tell(exc)
            made = {"code": status, "message": body["error"]["message"]}
            return JSONResponse(made, status, headers)

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return router


async def answered(sidecar: Sidecar, call: Call) -> list[list[wire.Json]]:
    """A list of detections for each text, in order."""
    policy = sidecar.policy(call)
    texts = read_contents(await sidecar.body(call))
    return await asyncio.gather(*(detect(policy, text, sidecar.scoring) for text in texts))


def read_contents(body: wire.Json) -> list[str]:
    given: Any = body.get("contents")
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise InputError("contents: give a list of texts")
    if not 1 <= len(given) <= MOST:
        raise InputError(f"contents: give 1 to {MOST} texts, not {len(given)}")
    if body.get("detector_params"):
        fix = "leave it out, the policy says what is detected from which score on"
        raise InputError(f"detector_params: {fix}")
    return given


async def detect(policy: Policy, text: str, runtime: AsyncRuntime) -> list[wire.Json]:
    """What the policy's detectors found in a text, and where."""
    whole = await find(policy, text, runtime)
    spans = split(text) if whole else []
    if not 1 < len(spans) <= SENTENCES:
        return write(text, Span(0, len(text)), whole)
    found = await asyncio.gather(*(find(policy, text[s.start : s.end], runtime) for s in spans))
    pairs = zip(spans, found, strict=True)
    placed = [detection for span, harm in pairs for detection in write(text, span, harm)]
    return placed or write(text, Span(0, len(text)), whole)


async def find(policy: Policy, text: str, runtime: AsyncRuntime) -> list[Finding]:
    """Each detector's worst finding, of those that do not let the text pass."""
    worst: dict[str, Finding] = {}
    for _, finding in await assess(policy, [Text(text)], runtime):
        known = worst.get(finding.detector)
        if finding.action != "pass" and (known is None or known.score < finding.score):
            worst[finding.detector] = finding
    return list(worst.values())


def write(text: str, span: Span, findings: Sequence[Finding]) -> list[wire.Json]:
    """The findings about one place, in the form of the detector API."""
    place = {"start": span.start, "end": span.end, "text": text[span.start : span.end]}
    return [
        {
            **place,
            "detection": finding.category or UNSAFE,
            "detection_type": finding.detector,
            "score": finding.score,
        }
        for finding in findings
    ]
