"""How well scores tell harm apart: AUROC, calibration, F1, recall, false alarms; NumPy alone.

Scores are p(unsafe), shape (rows,); labels 1 for harmful, shape (rows,). A score that is NaN is
a row that could not be scored: it counts as flagged, as under `on_error: block`, wherever a
threshold is asked, and not at all where the score itself is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BINS = 15
# The share of harmless rows that each word may flag; `medium` is where F1 is best.
FALSE_ALARMS = {"low": 0.01, "high": 0.1}


def flag(scores: Array, threshold: float) -> Array:
    """Which rows a threshold flags; one without a score is flagged."""
    return ~(scores < threshold)


def auroc(scores: Array, labels: Array) -> float:
    """The chance that a harmful row outscores a harmless one, ties counting half.

    NaN if one of the labels is absent.
    """
    return float(weighted_auroc(scores, labels, np.ones((1, len(labels))))[0])


def weighted_auroc(scores: Array, labels: Array, weights: Array) -> Array:
    """AUROC by ranks under many weightings at once: weights (draws, rows), result (draws,)."""
    known = ~np.isnan(scores)
    order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
    if not len(order):
        return np.full(len(weights), np.nan)
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] > ranked[:-1]])
    drawn = weights[:, order]
    harm = np.add.reduceat(drawn * labels[order], starts, axis=1)
    plain = np.add.reduceat(drawn, starts, axis=1) - harm
    below = np.cumsum(plain, axis=1) - plain / 2
    return divide((harm * below).sum(1), harm.sum(1) * plain.sum(1))


def divide(part: Array, whole: Array) -> Array:
    """The share, NaN where there is nothing to share."""
    nothing = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=nothing, where=whole > 0)
    return nothing


def calibration(scores: Array, labels: Array, bins: int = BINS) -> float:
    """Expected calibration error over equal bins of score (Guo et al., arXiv 1706.04599)."""
    return float(weighted_calibration(scores, labels, np.ones((1, len(labels))), bins)[0])


def weighted_calibration(scores: Array, labels: Array, weights: Array, bins: int = BINS) -> Array:
    """The same under many weightings at once: weights (draws, rows), result (draws,)."""
    known = ~np.isnan(scores)
    places = np.minimum((scores[known] * bins).astype(int), bins - 1)
    excess = np.zeros((len(places), bins))
    excess[np.arange(len(places)), places] = scores[known] - labels[known]
    drawn = weights[:, known]
    return divide(np.abs(drawn @ excess).sum(1), drawn.sum(1))


def weighted_rates(flagged: Array, labels: Array, weights: Array) -> dict[str, Array]:
    """Precision, recall, F1 and false alarms: weights (draws, rows), each result (draws,).

    NaN where there is nothing to measure; without a harmful row that is all but false alarms.
    """
    hits = weights @ (flagged & (labels == 1)).astype(float)
    alarms = weights @ (flagged & (labels == 0)).astype(float)
    harm = weights @ (labels == 1).astype(float)
    plain = weights @ (labels == 0).astype(float)
    return {
        "precision": divide(np.where(harm > 0, hits, np.nan), hits + alarms),
        "recall": divide(hits, harm),
        "f1": divide(2 * hits, np.where(harm > 0, hits + alarms + harm, 0)),
        "false_alarms": divide(alarms, plain),
    }


def f1(scores: Array, labels: Array, threshold: float) -> float:
    flagged = flag(scores, threshold)
    hits = float((flagged & (labels == 1)).sum())
    return 2 * hits / max(1.0, float(flagged.sum() + labels.sum()))


# -- thresholds, and the figures of an eval.json --------------------------------


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


def figures(scores: Array, labels: Array, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """AUROC, calibration error, and F1, recall and false alarms at each threshold."""
    found: dict[str, Any] = {"rows": len(labels), "harmful": int(labels.sum())}
    found["auroc"] = round(auroc(scores, labels), 4)
    found["ece"] = round(calibration(scores, labels), 4)
    for word, threshold in thresholds.items():
        flagged = flag(scores, threshold)
        found[word] = {
            "f1": round(f1(scores, labels, threshold), 4),
            "recall": round(float(flagged[labels == 1].mean()), 4),
            "false_alarms": round(float(flagged[labels == 0].mean()), 4),
        }
    return found


def by_source(
    rows: Sequence[Mapping[str, Any]], scores: Array, labels: Array, threshold: float
) -> dict[str, Any]:
    """Rows, harmful rows, share flagged and F1 of each `source`."""
    names = np.array([str(row.get("source", "")) for row in rows])
    found = {}
    for name in sorted(set(names.tolist())):
        mine = names == name
        found[name] = {
            "rows": int(mine.sum()),
            "harmful": int(labels[mine].sum()),
            "flagged": round(float(flag(scores[mine], threshold).mean()), 4),
            "f1": round(f1(scores[mine], labels[mine], threshold), 4),
        }
    return found
