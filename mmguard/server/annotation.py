"""OpenAI's `moderation` of chat completions, answered by the policy's own detectors.

`input` is about the request, `output` about each answer as the upstream gave it, whatever the
guard made of it after that. A caller may ask to have withheld what is flagged (`mode: block`),
never to be let through what the policy withholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmguard import drive
from mmguard.asks import Flow
from mmguard.case import Case
from mmguard.drive import AsyncRuntime
from mmguard.errors import InputError
from mmguard.guard import inspect
from mmguard.policy import Check, Policy
from mmguard.server import wire
from mmguard.server.assess import AnyRule, Judged, askers
from mmguard.server.exchange import Exchange
from mmguard.server.moderations import result
from mmguard.server.spans import watched
from mmguard.types import Guarded, Request, Sample

FIELD = "moderation"
MODES = ("score", "block")


def attend(exchange: Exchange, policy: Policy, runtime: AsyncRuntime) -> Policy:
    """The policy as the caller wants it, and the wish taken from what goes upstream.

    Raises `InputError` for a wish that nobody understands.
    """
    wish = exchange.body.get(FIELD)
    if FIELD not in exchange.body:
        return policy
    exchange.body = {name: value for name, value in exchange.body.items() if name != FIELD}
    exchange.content = wire.dump(exchange.body)
    if wish is None:
        return policy
    stricter = tighten(policy, modes(wish))

    async def annotate(answers: Sequence[Guarded]) -> wire.Json:
        asked = await drive.arun(watched(survey(policy, exchange.request)), runtime)
        told = {"input": report(policy, [asked]), "output": review(policy, answers)}
        return {FIELD: told}

    exchange.annotate = annotate
    return stricter


def modes(wish: Any) -> dict[str, str]:
    """What is to be done about either side: `score` or `block`."""
    if not isinstance(wish, Mapping) or not isinstance(wish.get("model"), str):
        raise InputError("moderation: give an object with a model; any name will do")
    sides = wish.get("policy") or {}
    if not isinstance(sides, Mapping):
        raise InputError("moderation.policy: give an object with input, output or both")
    return {side: mode(side, sides.get(side)) for side in ("input", "output")}


def mode(side: str, told: Any) -> str:
    given = told.get("mode") if isinstance(told, Mapping) else told
    if told is not None and given not in MODES:
        fix = f"give {' or '.join(MODES)}"
        raise InputError(f"moderation.policy.{side}.mode={given!r}: {fix}")
    return given or "score"


# -- what is withheld -----------------------------------------------------------


def tighten(policy: Policy, wanted: Mapping[str, str]) -> Policy:
    """The policy with a block wherever it flags, on the sides for which that is wanted."""
    update: dict[str, Any] = {}
    if wanted["input"] == "block":
        update["input"] = tuple(map(harden, askers(policy)))
    if wanted["output"] == "block":
        update["output"] = tuple(map(harden, policy.output))
        update["on_error"] = "block" if policy.on_error == "repair" else policy.on_error
    if not update:
        return policy
    made = policy.model_copy(update=update)
    for name in ("running", "detectors"):
        made.__dict__.pop(name, None)
    # Named as the file is: who asked for more is no other policy.
    made.__dict__["tag"] = policy.tag
    return made


def harden(check: Check) -> Check:
    """The check as one that blocks what it would have mended."""
    rules = {name: hard(rule) for name, rule in check.categories.items()}
    on_error = "block" if check.on_error == "repair" else check.on_error
    return hard(check).model_copy(update={"categories": rules, "on_error": on_error})


def hard(rule: AnyRule) -> AnyRule:
    return rule.model_copy(update={"action": "block"}) if rule.action == "repair" else rule


# -- what is told ---------------------------------------------------------------


def survey(policy: Policy, request: Request) -> Flow[list[Judged]]:
    """What the detectors say of a request, those of answers included."""
    case, checks = Case(request, policy), askers(policy)
    yield from inspect(case, "assess", checks, Sample(request))
    return list(zip(checks, case.trail, strict=False))


def review(policy: Policy, answers: Sequence[Guarded]) -> wire.Json:
    """What was found about each answer as it was first made."""
    if any(guarded.step == "input" for guarded in answers):
        return failed("no_output", "the request was withheld: no answer was made")
    return report(policy, [judged(policy, guarded) for guarded in answers])


def judged(policy: Policy, guarded: Guarded) -> list[Judged]:
    """The findings about a draft, each with its check; a judge's opinion has none of its own."""
    known = {check.detector: check for check in policy.output}
    second = policy.second("repair")
    found = [f for f in guarded.trail if f.stage in ("output", "stream")]
    return [(known.get(f.detector, second), f) for f in found]


def report(policy: Policy, found: Sequence[Sequence[Judged]]) -> wire.Json:
    """One result for each, or why there is none."""
    if not all(found):
        return failed("no_detector", f"policy {policy.name!r} names no detector for it")
    if any(finding.error for one in found for _, finding in one):
        return failed("detector_failed", "a detector failed, so not all was looked at")
    shared = {"model": policy.tag}
    results = [{"type": "moderation_result", **shared, **result(one)} for one in found]
    return {"type": "moderation_results", **shared, "results": results}


def failed(code: str, message: str) -> wire.Json:
    return {"type": "error", "code": code, "message": message}
