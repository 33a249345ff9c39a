"""What a policy's checks say of a text that no model was asked for: as a request, as an answer.

Runs the flow's own `inspect`, so that what a check finds here it finds in a guarded answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from mmguard import drive
from mmguard.asks import Flow
from mmguard.case import Case
from mmguard.drive import AsyncRuntime
from mmguard.errors import InputError
from mmguard.guard import inspect
from mmguard.policy import Check, Policy, Rule
from mmguard.server.failures import unavailable
from mmguard.server.spans import watched
from mmguard.types import Finding, Message, Part, Request, Sample

Judged = tuple[Check, Finding]
AnyRule = TypeVar("AnyRule", bound=Rule)


async def assess(policy: Policy, parts: Sequence[Part], runtime: AsyncRuntime) -> list[Judged]:
    """Every check with its finding. Raises `Refused` where one failed, whatever `on_error` says.

    Raises `InputError` where nothing could look, at the whole or at its pictures.
    """
    request = Request((Message("user", tuple(parts)),))
    found = await drive.arun(watched(survey(policy, request)), runtime)
    if failed := next((finding for _, finding in found if finding.error), None):
        raise unavailable(failed.detector, failed.error)
    if not found:
        raise InputError(f"policy {policy.name!r} names no detector: choose one that does")
    seen = max(finding.images for _, finding in found)
    if seen < len(request.images) and policy.unreadable == "block":
        told = f"{len(request.images) - seen} of {len(request.images)} pictures were seen by no"
        fix = "detector: send words alone, or let the policy name a detector that sees pictures"
        raise InputError(f"{told} {fix}")
    return found


def survey(policy: Policy, request: Request) -> Flow[list[Judged]]:
    """All detectors' findings about a text as a request, and about its words as an answer."""
    found: list[Judged] = []
    shown = Request(tuple(Message("user", (image,)) for image in request.images))
    views = [(askers(policy), Sample(request))]
    if request.text:
        views.append((answerers(policy), Sample(shown, request.text)))
    for checks, sample in views:
        case = Case(request, policy)
        yield from inspect(case, "assess", checks, sample)
        found += zip(checks, case.trail, strict=False)
    return found


def answerers(policy: Policy) -> list[Check]:
    """The detectors of answers. No model is asked: its word is about a request and an answer."""
    return [soften(check) for check in policy.output if policy.opinion(check) is None]


def askers(policy: Policy) -> list[Check]:
    """The checks of requests, and of answers those whose detector is not among them."""
    own = [soften(check) for check in policy.input]
    named = {check.detector for check in own}
    more = [c for c in answerers(policy) if c.detector not in named and not c.alone]
    return own + more


def soften(check: Check) -> Check:
    """The check as one that blocks nothing, so that those after it are asked too."""
    rules = {name: soft(rule) for name, rule in check.categories.items()}
    return soft(check).model_copy(update={"categories": rules, "grey": None})


def soft(rule: AnyRule) -> AnyRule:
    return rule.model_copy(update={"action": "repair"}) if rule.action == "block" else rule
