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

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmguard import prompts, registry
from mmguard.asks import Answer, Flow, bound, emit, generate, leave, read, together
from mmguard.case import Case, Source
from mmguard.errors import DetectorError
from mmguard.types import Action, Coverage, Finding, Guarded, Reply, Request, Sample
from mmguard.verdict import excuse, is_grey, question, strictest, weigh

if TYPE_CHECKING:
    from mmguard.policy import Check, Policy


def guard(request: Request, policy: Policy, *, stream: bool = False) -> Flow[Guarded]:
    """The answer to `request` that may leave under `policy` (bound: every strictness a number)."""
    case = Case(request, policy, streams=stream)
    where, action = "input", (yield from screen(case))
    if action == "pass":
        where, action = "output", (yield from answer(case))
    if action == "pass":
        yield from release(case, len(case.text))
        return case.close("pass", "answer")
    if action == "repair":
        for name in remedies(case):
            if (yield from attempt(case, name)) == "pass":
                yield from release(case, len(case.text))
                return case.close("repair", name)
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


def answer(case: Case) -> Flow[Action]:
    """The draft, and the verdict on it."""
    case.tell("begin", "draft")
    action = yield from make(case, Source("draft", "target", case.request))
    if action == "pass":
        action = yield from verify(case, "output")
    return case.enforce(action)


def make(case: Case, source: Source) -> Flow[Action]:
    """A model's answer, as it comes where somebody waits for it or it may end early."""
    if case.streams or case.running:
        return (yield from relay(case, source))
    case.take(source, (yield from generate(source.model, source.request)))
    return "pass"


def relay(case: Case, source: Source) -> Flow[Action]:
    """The answer piece by piece, checked at every window's end, wherever the pieces end.

    What is harmful ends there. In window mode a stream lets out what is checked, `hold`
    behind the check.
    """
    how, text, checked = case.policy.stream, "", 0
    while isinstance(piece := (yield from read(source.model, source.request)), str):
        text = case.text = text + piece
        if case.policy.mode != "enforce":
            yield from release(case, len(text))
        while case.running and how.window and len(text) - checked >= how.window:
            checked += how.window
            case.text = text[:checked]
            action = yield from verify(case, "stream")
            if action != "pass":
                yield from leave(source.model, source.request)
                case.take(source, Reply(case.text, "cut"))
                return action
            yield from release(case, checked - how.hold if case.streams and how.hold else 0)
    case.take(source, replace(piece, text=text))
    return "pass"


def release(case: Case, until: int) -> Flow[None]:
    """Let the text out up to here."""
    if until > case.released:
        piece, case.released = case.text[case.released : until], until
        yield from emit(piece)


def remedies(case: Case) -> Iterator[str]:
    """The steps that may still mend the answer: others once some of it has left."""
    for name in case.policy.repair:
        if not case.released:
            yield name
    if case.released:
        yield from case.policy.stream.after


def attempt(case: Case, name: str) -> Flow[Action]:
    """One repair step's answer, if it has one, by the checks that a draft must pass."""
    case.restart(name)
    try:
        made = yield from bound(case.follow(registry.find("steps", name)), case.policy.deadline)
        action: Action = "pass"
        if isinstance(made, Source):
            action = yield from make(case, made)
        else:
            case.offer(made)
        if action == "pass":
            case.examine()
    except Exception as exc:
        case.excuse(excuse(name, exc))
        return "repair"
    return (yield from verify(case, name)) if action == "pass" else action


def refuse(case: Case, where: str) -> Flow[Guarded]:
    """A refusal, or, once text has left, the end of it."""
    blamed = next((f for f in reversed(case.trail) if f.action != "pass"), None)
    text, step = case.policy.refusal(blamed.category if blamed else ""), where
    if case.released:
        text, step = case.policy.refusals.get("cut", prompts.CUT), "cut"
    yield from emit(text)
    case.text, case.finish, case.closed = case.text[: case.released] + text, "content_filter", False
    return case.close("block", step)


def verify(case: Case, stage: str) -> Flow[Action]:
    """The verdict on the text as it stands."""
    checks = case.running if stage == "stream" else case.policy.output
    return (yield from inspect(case, stage, checks, Sample(case.request, case.text)))


def inspect(case: Case, stage: str, checks: Sequence[Check], sample: Sample) -> Flow[Action]:
    """The strictest action that the checks ask for; those after the first block are moot."""
    if not checks:
        return "pass"
    case.tell("check", stage)
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
    case.tell("checked", stage, *findings)
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
