"""From a check to its question, and from the answer to what is to be done: pure functions.

Whatever is not a finding with a score from 0 to 1 is a failure, and a failure is
`on_error`, never "safe".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING

from mmguard import prompts
from mmguard.asks import Answer, Generate, Score
from mmguard.errors import DetectorError, StepError
from mmguard.types import JUDGE, SEVERITY, Action, Finding, Reply, Request, Sample

if TYPE_CHECKING:
    from mmguard.policy import Check, Policy

YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def strictest(actions: Iterable[Action]) -> Action:
    return max(actions, key=SEVERITY.__getitem__, default="pass")


def question(policy: Policy, check: Check, sample: Sample) -> Generate | Score:
    """What a check asks of its detector, or of the model whose word it takes."""
    judge = policy.opinion(check)
    if judge is None:
        shown = replace(sample, request=Request(())) if check.alone else sample
        return Score(check.detector, shown)
    shown = replace(sample, reply=sample.reply and sample.reply[: judge.chars])
    word = judge.trigger == "word"
    return Generate(judge.model, prompts.judge(policy.prompts.judge, shown, judge.image, word))


def weigh(policy: Policy, check: Check, answer: Answer, stage: str) -> Finding:
    """The answer as a finding with its threshold and the action it leads to."""
    finding = read_answer(policy, check, answer)
    if finding.error or not all(map(is_probability, scores(finding))):
        return fail(policy, check, finding, stage)
    action = decide(check, finding)
    return replace(finding, stage=stage, threshold=check.threshold, action=action)


def scores(finding: Finding) -> Iterable[object]:
    return (finding.score, *finding.categories.values())


def is_probability(score: object) -> bool:
    return isinstance(score, Real) and 0 <= float(score) <= 1


def read_answer(policy: Policy, check: Check, answer: Answer) -> Finding:
    if isinstance(answer, Finding):
        return answer
    try:
        if isinstance(answer, Reply):
            judge = policy.opinion(check)
            read = read_word if judge and judge.trigger == "word" else read_judge
            return replace(read(answer), detector=check.detector)
        error = f"{type(answer).__name__}: {answer}"
    except DetectorError as exc:
        error = str(exc)
    return Finding(check.detector, 1.0, error=error)


def fail(policy: Policy, check: Check, finding: Finding, stage: str) -> Finding:
    wrong = next((s for s in scores(finding) if not is_probability(s)), None)
    error = (finding.error or f"score {wrong} is not from 0 to 1")[:300]
    action = check.on_error or policy.on_error
    return Finding(check.detector, 1.0, "error", error=error, stage=stage, action=action)


def decide(check: Check, finding: Finding) -> Action:
    """The strictest action of the check's own rule and its categories' rules.

    The check's own rule is left out where the top category has a rule of its own.
    """
    found = [
        rule.action
        for name, rule in check.categories.items()
        if finding.categories.get(name, 0.0) >= rule.threshold
    ]
    if finding.category not in check.categories and finding.score >= check.threshold:
        found.append(check.action)
    return strictest(found)


def is_grey(check: Check, finding: Finding) -> bool:
    """Whether a finding that passed is close enough to its threshold to ask the judge."""
    passed = finding.action == "pass" and not finding.error
    return isinstance(check.grey, float) and passed and check.grey <= finding.score


def read_judge(reply: Reply) -> Finding:
    """P(yes) of a judge's reply: from its first token, or else from its words.

    Raises `DetectorError` for a reply that says neither yes nor no.
    """
    if decided(reply.first):
        yes, no = weight(reply.first, "yes"), weight(reply.first, "no")
        return Finding(JUDGE, min(1.0, yes / (yes + no)), reason="first token")
    spoken = YES_NO.match(reply.text)
    if spoken is None:
        raise DetectorError("the judge said neither yes nor no")
    return Finding(JUDGE, float(spoken[1].lower() == "yes"), reason="words")


def read_word(reply: Reply) -> Finding:
    """Whether a judge's reply is the bare word yes; whatever else it says counts as no."""
    found = reply.text.strip().lower() in ("yes", "yes.")
    return Finding(JUDGE, float(found), reason="bare word")


def decided(first: Mapping[str, float]) -> bool:
    """Whether the first token says it all, so that no later one is read."""
    return weight(first, "yes") + weight(first, "no") > 0.1


def weight(first: Mapping[str, float], word: str) -> float:
    return sum(share for token, share in first.items() if token.strip().lower() == word)


def excuse(step: str, error: Exception) -> Finding:
    """Why a repair step brought no answer: it has none, or it failed."""
    if isinstance(error, StepError):
        return Finding(step, 0.0, "skipped", reason=str(error)[:300], stage=step)
    told = f"{type(error).__name__}: {error}"[:300]
    return Finding(step, 1.0, "error", error=told, stage=step)
