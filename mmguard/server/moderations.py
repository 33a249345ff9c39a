"""OpenAI's moderations, answered by the policy's own detectors.

`flagged` says that a check of the policy would not let the text pass, as a request or as an
answer. Categories are MLCommons' hazards, any other that a detector tells, OpenAI's names, and
`unsafe`, the highest score of all, which is true whenever `flagged` is.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request as Call
from fastapi.responses import JSONResponse, Response

from mmguard import messages
from mmguard.detect.hazards import HAZARDS
from mmguard.errors import InputError
from mmguard.policy import Check
from mmguard.server import wire
from mmguard.server.assess import Judged, assess
from mmguard.server.intake import inline
from mmguard.server.sidecar import Sidecar, refuse_path
from mmguard.types import Finding, Part, Text

UNSAFE = "unsafe"
MOST = 1024
KINDS = ("text", "image_url")
# OpenAI's names, each the highest of the hazards that it covers. Without any, no hazard is as
# narrow as the name, whose score then is that of a detector that tells it, or 0.
NAMES: Mapping[str, tuple[str, ...]] = {
    "harassment": (),
    "harassment/threatening": (),
    "hate": ("hate",),
    "hate/threatening": (),
    "illicit": (
        "non_violent_crimes",
        "violent_crimes",
        "sex_crimes",
        "indiscriminate_weapons",
        "code_abuse",
    ),
    "illicit/violent": ("violent_crimes", "indiscriminate_weapons"),
    "self-harm": ("self_harm",),
    "self-harm/instructions": (),
    "self-harm/intent": (),
    "sexual": ("sexual_content", "child_exploitation"),
    "sexual/minors": ("child_exploitation",),
    "violence": ("violent_crimes",),
    "violence/graphic": (),
}


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/moderations")
    async def moderations(call: Call) -> Response:
        body = await sidecar.body(call)
        policy = sidecar.policy(call, body)
        inputs = await read_inputs(sidecar, body.get("input"))
        found = await asyncio.gather(*(assess(policy, i, sidecar.scoring) for i in inputs))
        results = [result(judged) for judged in found]
        made = {"id": f"modr-{uuid.uuid4().hex}", "model": policy.tag, "results": results}
        return JSONResponse(made, headers={"x-mmguard-policy": policy.tag})

    return router


async def read_inputs(sidecar: Sidecar, given: Any) -> list[tuple[Part, ...]]:
    """What is to be judged: each string by itself, or one list of parts together."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= MOST:
        raise InputError(f"input: give a string, or a list of 1 to {MOST} strings or parts")
    if all(isinstance(one, str) for one in given):
        return [(Text(one),) for one in given]
    for i, part in enumerate(given):
        if not isinstance(part, Mapping) or part.get("type") not in KINDS:
            told = f"input[{i}]: give strings alone, or parts of type {' or '.join(KINDS)} alone"
            raise InputError(told)
    said = [{"role": "user", "content": given}]
    _, [seen] = await inline(said, sidecar.fetch, sidecar.settings.images)
    return [messages.parse_content("input", seen["content"], refuse_path)]


def result(found: Sequence[Judged]) -> wire.Json:
    """One result, of all findings together."""
    hazards = dict.fromkeys((*HAZARDS.values(), *told(found)))
    covers = {**{name: (name,) for name in hazards}, **NAMES, UNSAFE: ()}
    scored = {name: score(found, name, covered) for name, covered in covers.items()}
    return {
        "flagged": any(finding.action != "pass" for _, finding in found),
        "categories": {name: flagged for name, (flagged, _, _) in scored.items()},
        "category_scores": {name: value for name, (_, value, _) in scored.items()},
        "category_applied_input_types": {name: seen for name, (_, _, seen) in scored.items()},
    }


def told(found: Iterable[Judged]) -> list[str]:
    return sorted({name for _, finding in found for name in finding.categories})


def score(
    found: Sequence[Judged], name: str, covered: Sequence[str]
) -> tuple[bool, float, list[str]]:
    """Whether a category is flagged, its score, and what kinds of input were looked at for it."""
    rows = [row for judged in found for row in rate(*judged, {name, *covered})]
    if name == UNSAFE:
        rows = [(finding.action != "pass", finding.score, finding) for _, finding in found]
    seen = {"text": any(f.chars for _, _, f in rows), "image": any(f.images for _, _, f in rows)}
    flagged, highest = any(row[0] for row in rows), max((row[1] for row in rows), default=0.0)
    return flagged, highest, [kind for kind, looked in seen.items() if looked]


def rate(
    check: Check, finding: Finding, names: Iterable[str]
) -> Iterable[tuple[bool, float, Finding]]:
    """What a finding says of these categories: flagged are those that its action is due to."""
    for name in names:
        if name in finding.categories:
            rule, value = check.categories.get(name, check), finding.categories[name]
            harmful = finding.action != "pass" and rule.action != "pass"
            yield harmful and value >= rule.threshold, value, finding
