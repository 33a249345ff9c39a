"""From a detector's answer to what the policy wants done about it: pure functions.

Whatever is not a finding with a score from 0 to 1 is a failure, and a failure is
`on_error`, never "safe".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING

from mmguard.asks import Answer
from mmguard.errors import DetectorError
from mmguard.types import JUDGE, SEVERITY, Action, Finding, Reply

if TYPE_CHECKING:
    from mmguard.policy import Check, Policy

YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def strictest(actions: Iterable[Action]) -> Action:
    return max(actions, key=SEVERITY.__getitem__, default="pass")


def weigh(policy: Policy, check: Check, answer: Answer, stage: str) -> Finding:
    """The answer as a finding with its threshold and the action it leads to."""
    finding = read_answer(check, answer)
    if finding.error or not is_probability(finding.score):
        return fail(policy, check, finding, stage)
    action = decide(check, finding)
    return replace(finding, stage=stage, threshold=check.threshold, action=action)


def is_probability(score: object) -> bool:
    return isinstance(score, Real) and 0 <= float(score) <= 1


def read_answer(check: Check, answer: Answer) -> Finding:
    if isinstance(answer, Finding):
        return answer
    try:
        if isinstance(answer, Reply):
            return replace(read_judge(answer), detector=check.detector)
        error = f"{type(answer).__name__}: {answer}"
    except DetectorError as exc:
        error = str(exc)
    return Finding(check.detector, 1.0, error=error)


def fail(policy: Policy, check: Check, finding: Finding, stage: str) -> Finding:
    error = (finding.error or f"score {finding.score} is not from 0 to 1")[:300]
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
    yes, no = weight(reply.first, "yes"), weight(reply.first, "no")
    if yes + no > 0.1:
        return Finding(JUDGE, min(1.0, yes / (yes + no)), reason="first token")
    spoken = YES_NO.match(reply.text)
    if spoken is None:
        raise DetectorError("the judge said neither yes nor no")
    return Finding(JUDGE, float(spoken[1].lower() == "yes"), reason="words")


def weight(first: Mapping[str, float], word: str) -> float:
    return sum(share for token, share in first.items() if token.strip().lower() == word)
