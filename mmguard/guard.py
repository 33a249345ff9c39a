"""The flow: what happens to one request, from question to answer. All policy, no I/O.

input checks ── block ──▶ refusal
    │ pass   └─ repair ─▶ the repair steps; the target never answers with the picture
    ▼
draft ──▶ output checks ── grey ──▶ the judge's opinion
    │ pass ▶ the draft, untouched
    ▼ repair
each step of policy.repair in turn, until one passes the same output checks
    ▼ none did
refusal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmguard import prompts, registry
from mmguard.asks import Answer, Flow, bound, emit, generate, read, together
from mmguard.case import Case
from mmguard.errors import DetectorError, StepError
from mmguard.types import Action, Coverage, Finding, Guarded, Reply, Request, Sample
from mmguard.verdict import excuse, is_grey, question, strictest, weigh

if TYPE_CHECKING:
    from mmguard.policy import Check, Policy


def guard(request: Request, policy: Policy, *, stream: bool = False) -> Flow[Guarded]:
    """The answer to `request` that may leave under `policy` (bound: every strictness a number)."""
    case = Case(request, policy)
    where, action = "input", (yield from screen(case))
    if action == "pass":
        where, action = "output", (yield from answer(case, stream))
    if action == "pass" and case.draft:
        yield from release(case, len(case.text))
        return case.close(case.text, "pass", "answer", case.draft.finish)
    if action == "repair":
        for name in policy.stream.after if case.released else policy.repair:
            repaired = yield from attempt(case, name)
            if repaired is not None:
                yield from emit(repaired.text[case.released :])
                return case.close(repaired.text, "repair", name, repaired.finish)
    return (yield from refuse(case, where))


def screen(case: Case) -> Flow[Action]:
    """The verdict on the request itself, unreadable parts first."""
    request, policy = case.request, case.policy
    case.coverage = Coverage(images_total=len(request.images), opaque=len(request.opaque))
    if request.opaque and policy.unreadable == "block" and policy.mode != "off":
        kinds = ", ".join(sorted({part.kind for part in request.opaque}))
        reason = f"nobody here can read: {kinds}"
        case.trail.append(Finding("unreadable", 1.0, reason=reason, stage="input", action="block"))
        return case.enforce("block")
    return case.enforce((yield from inspect(case, "input", policy.input, Sample(request))))


def answer(case: Case, stream: bool) -> Flow[Action]:
    """The draft, as it comes where somebody waits for it or it may end early; its verdict."""
    early = case.policy.mode == "enforce" and case.policy.running
    if stream or early:
        action = yield from relay(case, stream)
        if action != "pass":
            return action
    else:
        case.take((yield from generate("target", case.request)))
    return case.enforce((yield from verify(case, "output", case.text)))


def relay(case: Case, stream: bool) -> Flow[Action]:
    """The draft piece by piece, checked at every window's end, wherever the pieces end.

    What is harmful ends there. In window mode a stream lets out what is checked, `hold`
    behind the check.
    """
    how, mode = case.policy.stream, case.policy.mode
    while isinstance(piece := (yield from read(case.request)), str):
        case.text += piece
        if mode != "enforce":
            yield from release(case, len(case.text))
        while mode == "enforce" and how.window and len(case.text) - case.checked >= how.window:
            text = case.text[: case.checked + how.window]
            action = yield from verify(case, "stream", text)
            if action != "pass":
                case.take(Reply(text, "cut"))
                return case.enforce(action)
            case.checked = len(text)
            yield from release(case, case.checked - how.hold if stream and how.hold else 0)
    case.take(replace(piece, text=case.text))
    return "pass"


def release(case: Case, until: int) -> Flow[None]:
    """Let the text out up to here."""
    if until > case.released:
        piece, case.released = case.text[case.released : until], until
        yield from emit(piece)


def attempt(case: Case, name: str) -> Flow[Reply | None]:
    """One repair step's reply, if it has one and that passes the checks a draft must pass."""
    case.closed = False
    try:
        step = registry.find("steps", name)(case)
        reply = offered((yield from bound(step, case.policy.deadline)), case)
    except Exception as exc:
        case.trail.append(excuse(name, exc))
        return None
    return reply if (yield from verify(case, name, reply.text)) == "pass" else None


def offered(reply: Reply | None, case: Case) -> Reply:
    """The reply of a step, if it says something else than the draft, after what has left."""
    if reply is None or not reply.text.strip():
        raise StepError("the step answered nothing")
    if case.draft and reply.text.strip() == case.draft.text.strip():
        raise StepError("the step answered the draft again")
    if not reply.text.startswith(case.text[: case.released]):
        raise StepError("the step answered something else than what has left")
    return reply


def refuse(case: Case, where: str) -> Flow[Guarded]:
    """A refusal, or, once text has left, the end of it."""
    blamed = next((f for f in reversed(case.trail) if f.action != "pass"), None)
    text, step = case.policy.refusal(blamed.category if blamed else ""), where
    if case.released:
        text, step = case.policy.refusals.get("cut", prompts.CUT), "cut"
    yield from emit(text)
    case.closed = False
    return case.close(case.text[: case.released] + text, "block", step, "content_filter")


def verify(case: Case, stage: str, text: str) -> Flow[Action]:
    checks = case.policy.running if stage == "stream" else case.policy.output
    return (yield from inspect(case, stage, checks, Sample(case.request, text)))


def inspect(case: Case, stage: str, checks: Sequence[Check], sample: Sample) -> Flow[Action]:
    """The strictest action that the checks ask for; those after the first block are moot."""
    if not checks:
        return "pass"
    policy, weighed = case.policy, dict[int, Finding]()

    def blocks(i: int, answer: Answer) -> bool:
        weighed[i] = weigh(policy, checks[i], answer, stage)
        return weighed[i].action == "block"

    asks = tuple(question(policy, check, sample) for check in checks)
    answers = yield from together(asks, blocks)
    findings = [
        weighed[i] if i in weighed else weigh(policy, checks[i], found, stage)
        for i, found in enumerate(answers[: len(checks)])
    ]
    if len(findings) < len(checks) and not any(f.action == "block" for f in findings):
        lost = DetectorError("the driver brought no finding")
        findings += [weigh(policy, check, lost, stage) for check in checks[len(findings) :]]
    grey = [check for check, f in zip(checks, findings, strict=False) if is_grey(check, f)]
    if grey and strictest(f.action for f in findings) == "pass":
        findings.append((yield from opine(case, stage, grey, sample)))
    note(case, stage, sample, findings)
    return strictest(f.action for f in findings)


def opine(case: Case, stage: str, grey: Sequence[Check], sample: Sample) -> Flow[Finding]:
    """The judge's opinion, in the place of checks that could not decide."""
    rule = case.policy.second(strictest(check.action for check in grey))
    asks = (question(case.policy, rule, sample),)
    answers = yield from together(asks, lambda i, answer: True)
    return weigh(case.policy, rule, answers[0], stage)


def note(case: Case, stage: str, sample: Sample, findings: Sequence[Finding]) -> None:
    """Keep the findings and what they looked at; passes in mid-stream leave no trace."""
    if stage != "stream" or any(f.action != "pass" for f in findings):
        case.trail += findings
    old = case.coverage
    case.coverage = Coverage(
        images=max(old.images, *[f.images for f in findings]),
        images_total=old.images_total,
        chars=max(f.chars for f in findings),
        chars_total=sample.chars,
        opaque=old.opaque,
    )
