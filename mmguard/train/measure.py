"""How well a detector tells harm apart: figures on labelled rows, and thresholds from them.

Knows any detector by its `score` alone; what is measured is what a policy would see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmguard.errors import InputError
from mmguard.rows import make_sample, read_rows
from mmguard.types import Detector

Row = Mapping[str, Any]
Array = np.ndarray[Any, Any]
SIDES = {"answer": ("response_harm", "response"), "request": ("prompt_harm", "prompt")}
# The share of harmless rows that each word may flag; `medium` is where F1 is best.
FALSE_ALARMS = {"low": 0.01, "high": 0.1}


def load_rows(path: Path) -> list[Row]:
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, InputError):
            raise row
        for name in ("prompt_harm", "response_harm"):
            if row.get(name) not in (None, 0, 1):
                raise InputError(f"{path}:{number}: {name} is {row[name]!r}, not 0, 1 or null")
        for name in ("prompt", "response"):
            if not isinstance(row.get(name), str | None):
                raise InputError(f"{path}:{number}: {name} must be a string or null")
        rows.append(row)
    return rows


def keep(rows: Sequence[Row], side: str) -> list[Row]:
    """The rows with a label and a text on this side."""
    label, text = SIDES[side]
    return [row for row in rows if row.get(label) is not None and row.get(text)]


def scores(detector: Detector, rows: Sequence[Row], side: str) -> tuple[Array, Array]:
    """The detector's scores of the labelled rows, and the labels."""
    kept = keep(rows, side)
    hidden = {} if side == "answer" else {"response": None}
    samples = [make_sample({**row, **hidden, "image": None}, Path()) for row in kept]
    labels = np.array([row[SIDES[side][0]] for row in kept], dtype=int)
    if len(set(labels.tolist())) < 2:
        raise InputError(f"the rows have not both values of {SIDES[side][0]}: nothing to measure")
    return np.array([finding.score for finding in detector.score(samples)]), labels


def measure(detector: Detector, rows: Sequence[Row]) -> dict[str, Any]:
    """Figures for answers and for requests, at the detector's own thresholds."""
    result: dict[str, Any] = {"thresholds": dict(detector.thresholds)}
    for side in SIDES:
        found, labels = scores(detector, rows, side)
        result[side] = figures(found, labels, detector.thresholds)
        medium = detector.thresholds["medium"]
        result[side]["sources"] = by_source(keep(rows, side), found, labels, medium)
    return result


def alarms(scores: Array, labels: Array) -> dict[str, float]:
    """The scores at which `low` and `high` flag their share of harmless rows."""
    harmless = scores[labels == 0]
    return {
        word: float(np.quantile(harmless, 1 - share, method="higher"))
        for word, share in FALSE_ALARMS.items()
    }


def choose(scores: Array, labels: Array) -> dict[str, float]:
    """Thresholds: `low` and `high` by their false alarms, `medium` where F1 is best."""
    grid = np.unique(np.round(scores, 3))
    best = float(max(grid, key=lambda t: (f1(scores, labels, t), t)))
    ordered = sorted([*alarms(scores, labels).values(), best], reverse=True)
    return {word: round(t, 3) for word, t in zip(("low", "medium", "high"), ordered, strict=True)}


def f1(scores: Array, labels: Array, threshold: float) -> float:
    flagged = scores >= threshold
    hits = float((flagged & (labels == 1)).sum())
    return 2 * hits / max(1.0, float(flagged.sum() + labels.sum()))


def figures(scores: Array, labels: Array, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """AUROC, calibration error, and F1, recall and false alarms at each threshold."""
    from sklearn.metrics import roc_auc_score

    found: dict[str, Any] = {"rows": len(labels), "harmful": int(labels.sum())}
    found["auroc"] = round(float(roc_auc_score(labels, scores)), 4)
    found["ece"] = round(calibration(scores, labels), 4)
    for word, threshold in thresholds.items():
        flagged = scores >= threshold
        found[word] = {
            "f1": round(f1(scores, labels, threshold), 4),
            "recall": round(float(flagged[labels == 1].mean()), 4),
            "false_alarms": round(float(flagged[labels == 0].mean()), 4),
        }
    return found


def calibration(scores: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error over equal bins of score (Guo et al., arXiv 1706.04599)."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs(float(scores[places == i].sum() - labels[places == i].sum())) for i in range(bins)]
    return sum(gaps) / len(labels)


def by_source(
    rows: Sequence[Row],
    scores: Array,
    labels: Array,
    threshold: float,
) -> dict[str, Any]:
    names = np.array([str(row.get("source", "")) for row in rows])
    found = {}
    for name in sorted(set(names.tolist())):
        mine = names == name
        flagged = float((scores[mine] >= threshold).mean())
        found[name] = {
            "rows": int(mine.sum()),
            "harmful": int(labels[mine].sum()),
            "flagged": round(flagged, 4),
            "f1": round(f1(scores[mine], labels[mine], threshold), 4),
        }
    return found
