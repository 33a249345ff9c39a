"""How harmful texts are by a policy's own checks, and which of their sentences make them so.

For repair steps that must look before they offer something. What they offer is judged by
the flow all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from mmguard.asks import Flow, together
from mmguard.case import Case
from mmguard.errors import DetectorError, StepError
from mmguard.fields import Excise
from mmguard.sentences import Span, share, split, without
from mmguard.types import SEVERITY, Finding, Message, Request, Sample, Text
from mmguard.verdict import question, weigh

if TYPE_CHECKING:
    from mmguard.policy import Check

Probe = tuple["Check", Sample]
View = Callable[[Case, str], Sequence[Probe]]


def as_answer(case: Case, text: str) -> list[Probe]:
    """A text as an answer to the request, for every check of answers."""
    return [(check, Sample(case.request, text)) for check in case.policy.output]


def as_caption(case: Case, text: str) -> list[Probe]:
    """A description as an answer, and as something that a user may have asked."""
    asked = Request((Message("user", (Text(text),)),))
    return [*as_answer(case, text), *((check, Sample(asked)) for check in case.policy.input)]


def cheap(case: Case, view: Sequence[Probe]) -> list[Probe]:
    """What of it detectors answer: no model is asked about every single sentence."""
    return [(check, sample) for check, sample in view if case.policy.opinion(check) is None]


def grade(case: Case, stage: str, views: Sequence[Sequence[Probe]]) -> Flow[list[Finding]]:
    """The worst finding about each of several texts, all asked at once."""
    if not all(views):
        raise StepError("the policy names no detector that could look")
    probes = [probe for view in views for probe in view]
    answers = yield from together(tuple(question(case.policy, *probe) for probe in probes))
    if len(answers) != len(probes):
        raise DetectorError("the driver lost findings")
    pairs = zip(probes, answers, strict=True)
    found = (weigh(case.policy, check, answer, stage) for (check, _), answer in pairs)
    return [max((next(found) for _ in view), key=rank) for view in views]


def rank(finding: Finding) -> tuple[int, float]:
    """How bad a finding is: by what it leads to, then by how it stands to its threshold."""
    return SEVERITY[finding.action], finding.score / max(finding.threshold or 0.0, 1e-9)


def screen(case: Case, texts: Sequence[str]) -> Flow[list[str]]:
    """Descriptions that pass the checks, each without the sentences that would not."""
    clean, stage = list(texts), "description"
    found = yield from grade(case, stage, [as_caption(case, text) for text in texts])
    harmful = [i for i, finding in enumerate(found) if finding.action != "pass"]
    if not harmful:
        return clean
    for i in harmful:
        how = Excise(most=1, margin=0)
        clean[i] = yield from prune(case, stage, texts[i], as_caption, how)
    found = yield from grade(case, stage, [as_caption(case, clean[i]) for i in harmful])
    if any(finding.action != "pass" for finding in found):
        raise StepError("a description does not pass the checks")
    return clean


def prune(case: Case, stage: str, text: str, view: View, how: Excise) -> Flow[str]:
    """A text without its harmful sentences: those, and as few more as let the rest pass.

    Raises `StepError` where nothing that passes would remain, or too little.
    """
    spans = split(text)
    views = [cheap(case, view(case, text[s.start : s.end])) for s in spans]
    found = yield from grade(case, stage, views)
    order = sorted(range(len(spans)), key=lambda i: rank(found[i]), reverse=True)
    sure = max(1, sum(finding.action != "pass" for finding in found))
    cuts = [order[:size] for size in ladder(sure, len(spans))]
    rests = [(cut, remains(text, [spans[i] for i in cut], how)) for cut in cuts]
    rests = [(cut, rest) for cut, rest in rests if rest]
    passed = yield from grade(case, stage, [cheap(case, view(case, rest)) for _, rest in rests])
    for (cut, rest), finding in zip(rests, passed, strict=True):
        if clears(finding, how.margin):
            case.trail += [tell(found[i], spans[i]) for i in sorted(cut)]
            return rest
    raise StepError("too little would remain that passes the checks")


def beginning(case: Case) -> Flow[str]:
    """The draft up to the end of its last sentence before the first harm, if that has not left.

    Raises `StepError` where the draft begins with harm.
    """
    text = case.text
    tails = (len(text) - len(text[span.end :].lstrip()) for span in split(text))
    ends = [end for end in tails if end >= case.released]
    views = [cheap(case, as_answer(case, text[:end])) for end in ends]
    found = (yield from grade(case, "beginning", views)) if views else []
    safe = takewhile(lambda pair: pair[1].action == "pass", zip(ends, found, strict=True))
    kept = text[: max((end for end, _ in safe), default=case.released)]
    if not kept.strip():
        raise StepError("the draft has no harmless beginning")
    return kept


def clears(finding: Finding, margin: float) -> bool:
    """Whether a text passes, and by how much it must."""
    return finding.action == "pass" and finding.score <= (1 - margin) * (finding.threshold or 1)


def ladder(first: int, last: int) -> Iterator[int]:
    """`first`, then one more, two more, four more ... below `last`."""
    size, stride = first, 1
    while size <= last:
        yield size
        size, stride = size + stride, stride * 2


def remains(text: str, cut: Sequence[Span], how: Excise) -> str:
    return without(text, cut, how.mark) if share(text, cut) <= how.most else ""


def tell(finding: Finding, span: Span) -> Finding:
    """The finding about a sentence that was cut: where it stood, and how severe it is."""
    return replace(finding, label="cut", reason=f"{span.start}:{span.end} {severity(finding)}")


def severity(finding: Finding) -> str:
    """In which third between its threshold and 1 a score lies."""
    threshold = finding.threshold or 0.0
    over = (finding.score - threshold) / max(1 - threshold, 1e-9)
    return ("minor", "moderate", "severe")[min(2, max(0, int(3 * over)))]
