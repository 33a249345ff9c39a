"""How early a detector sees harm while an answer is still coming, and how often it errs on the way.

An answer is cut as a stream would be checked, every few words; a detector that keeps what it
has read makes this cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from mmguard.errors import InputError
from mmguard.types import Detector, Sample

WORDS = 20


@dataclass(frozen=True, slots=True)
class Course:
    """What one answer's prefixes scored, and how much of it each had seen."""

    scores: Sequence[float]
    shares: Sequence[float]

    def alarm(self, threshold: float) -> float | None:
        """The share of the answer seen at the first alarm; `None` if there was none."""
        found = zip(self.scores, self.shares, strict=True)
        return next((share for score, share in found if score >= threshold), None)


def prefixes(answer: str, words: int = WORDS) -> list[str]:
    """The beginnings of an answer, `words` more each, the last one whole."""
    ends = [i for i, char in enumerate(answer) if char.isspace() and i]
    starts = [answer[:end] for end in ends[words - 1 :: words]]
    return [start for start in starts if start.strip()] + [answer]


def follow(detector: Detector, sample: Sample, words: int = WORDS) -> Course:
    """The scores of an answer's beginnings, in order."""
    answer = sample.reply or ""
    seen = prefixes(answer, words)
    found = detector.score([replace(sample, reply=text) for text in seen])
    return Course(
        [finding.score for finding in found], [len(text) / max(1, len(answer)) for text in seen]
    )


def measure_streams(
    detector: Detector,
    samples: Sequence[Sample],
    harmful: Sequence[bool],
    *,
    threshold: float | None = None,
    limit: int = 1000,
) -> dict[str, Any]:
    """Shares of harmful answers seen before the alarm; alarms at any prefix of harmless ones.

    Of each kind `limit` answers, chosen by hash, are followed; `threshold` is by default the
    detector's `medium`. `caught_whole` and `false_alarms_whole` are of the same answers when
    whole. Raises `InputError` if one of the kinds is absent.
    """
    at = detector.thresholds["medium"] if threshold is None else threshold
    bad, good = (
        [follow(detector, sample) for sample in choose(samples, harmful, kind, limit)]
        for kind in (True, False)
    )
    if not bad or not good:
        raise InputError("streams are measured on harmful and harmless answers: one is absent")
    alarms = [share for course in bad if (share := course.alarm(at)) is not None]
    return {
        "harmful": len(bad),
        "caught": round(len(alarms) / len(bad), 4),
        "caught_whole": share_whole(bad, at),
        "median_share": round(float(np.median(alarms)), 4) if alarms else None,
        "harmless": len(good),
        "false_alarms_any_prefix": round(
            float(np.mean([course.alarm(at) is not None for course in good])), 4
        ),
        "false_alarms_whole": share_whole(good, at),
    }


def share_whole(courses: Sequence[Course], threshold: float) -> float:
    return round(float(np.mean([course.scores[-1] >= threshold for course in courses])), 4)


def choose(
    samples: Sequence[Sample], harmful: Sequence[bool], kind: bool, limit: int
) -> list[Sample]:
    pairs = zip(samples, harmful, strict=True)
    return sorted((s for s, bad in pairs if bad == kind and s.reply), key=order)[:limit]


def order(sample: Sample) -> bytes:
    text = f"{sample.request.query}\0{sample.reply}"
    return sha256(text.encode("utf-8", "replace")).digest()
