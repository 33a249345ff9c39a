"""The curves of a report as arrays of points; a row without a score is on none of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmguard.evals.figures import Array, flag, weighted_rates

POINTS = 240


@dataclass(frozen=True, slots=True)
class Reliability:
    """Per occupied bin of score: rows, mean score and share of harmful rows, shape (bins,)."""

    rows: Array
    score: Array
    harmful: Array


def roc(scores: Array, labels: Array) -> Array:
    """False alarms, recall and threshold at every score, strictest first, shape (points, 3).

    At most `POINTS` of them, spread along the curve. Both labels must be present.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    hits = np.cumsum(labels[order])[ends] / labels.sum()
    alarms = np.cumsum(1 - labels[order])[ends] / (1 - labels).sum()
    points = np.column_stack([alarms, hits, scores[order][ends]])
    points = np.vstack([[0.0, 0.0, 1.0], points])
    way = points[:, 0] + points[:, 1]
    kept = np.searchsorted(way, np.linspace(0, way[-1], POINTS))
    return np.asarray(points[np.unique(np.minimum(kept, len(points) - 1))])


def reliability(scores: Array, labels: Array, bins: int = 10) -> Reliability:
    """How often harm is there when the score says so, over equal bins of score."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    rows = np.bincount(places, minlength=bins)
    here = rows > 0
    return Reliability(
        rows[here],
        np.bincount(places, scores, bins)[here] / rows[here],
        np.bincount(places, labels, bins)[here] / rows[here],
    )


def sweep(scores: Array, labels: Array, steps: int = 100) -> dict[str, Array]:
    """Precision, recall, F1 and false alarms at evenly spaced thresholds, shape (steps + 1,)."""
    grid = np.linspace(0, 1, steps + 1)
    ones = np.ones((1, len(labels)))
    rates = [weighted_rates(flag(scores, t), labels, ones) for t in grid]
    return {
        "threshold": grid,
        **{name: np.array([float(r[name][0]) for r in rates]) for name in rates[0]},
    }


def spread(scores: Array, bins: int = 25) -> Array:
    """The share of these rows in each equal bin of score, shape (bins,)."""
    return np.histogram(scores, bins, (0, 1))[0] / max(1, len(scores))
