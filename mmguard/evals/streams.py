"""How early a detector sees harm while an answer is still coming, and how often it errs on the way.

An answer is cut as a stream would be checked, every few words; a detector that keeps what it
has read makes this cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mmguard.errors import InputError
from mmguard.rows import make_sample
from mmguard.types import Detector, Sample

Row = Mapping[str, Any]
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
    rows: Sequence[Row],
    *,
    threshold: float | None = None,
    limit: int = 1000,
) -> dict[str, Any]:
    """Shares of harmful answers seen before the alarm; alarms at any prefix of harmless ones.

    `rows` have `prompt, response, response_harm`; of each label, `limit` rows by hash are
    followed. Raises `InputError` if one of the labels is absent.
    """
    at = detector.thresholds["medium"] if threshold is None else threshold
    harmful, harmless = (
        [follow(detector, sample_of(row)) for row in choose(rows, label, limit)] for label in (1, 0)
    )
    if not harmful or not harmless:
        raise InputError("streams are measured on harmful and harmless answers: one is absent")
    alarms = [share for course in harmful if (share := course.alarm(at)) is not None]
    any_prefix = np.mean([course.alarm(at) is not None for course in harmless])
    whole = np.mean([course.scores[-1] >= at for course in harmless])
    return {
        "harmful": len(harmful),
        "caught": round(len(alarms) / len(harmful), 4),
        "median_share": round(float(np.median(alarms)), 4) if alarms else None,
        "harmless": len(harmless),
        "false_alarms_whole": round(float(whole), 4),
        "false_alarms_any_prefix": round(float(any_prefix), 4),
    }


def choose(rows: Sequence[Row], label: int, limit: int) -> list[Row]:
    kept = [row for row in rows if row.get("response_harm") == label and row.get("response")]
    return sorted(kept, key=order)[:limit]


def order(row: Row) -> bytes:
    text = f"{row.get('prompt')}\0{row['response']}"
    return sha256(text.encode("utf-8", "replace")).digest()


def sample_of(row: Row) -> Sample:
    return make_sample({**row, "image": None}, Path())
