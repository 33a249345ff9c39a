"""How sure a figure is: bootstrap intervals over prompts, and Clopper-Pearson bounds.

Answers to one prompt are not independent, so whole prompts are drawn, never single rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mmguard.evals.figures import (
    Array,
    flag,
    weighted_auroc,
    weighted_calibration,
    weighted_rates,
)

DRAWS = 1000
LEVEL = 0.95
# Cells of one block of draws: bounds the memory to some tens of megabytes.
CELLS = 2_000_000
Figure = dict[str, float | list[float] | None]


def tails(count: int, rate: float, most: int) -> Array:
    """P(X <= k) of X ~ Binomial(count, rate) for k = 0 ... most, shape (most + 1,)."""
    k = np.arange(1, most + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((count - k + 1) / k))])
    hits = np.arange(most + 1)
    logs = ways + hits * math.log(rate) + (count - hits) * math.log1p(-rate)
    return np.asarray(np.minimum(np.cumsum(np.exp(logs)), 1.0))


def upper_bound(hits: int, count: int, confidence: float = LEVEL) -> float:
    """The one-sided Clopper-Pearson upper bound of a rate after `hits` of `count`.

    The largest rate under which so few hits still have a chance above 1 - confidence
    (Clopper and Pearson, Biometrika 26, 1934). No hits possible or all hit: 1.
    """
    if hits >= count:
        return 1.0
    low, high = hits / count, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if tails(count, middle, hits)[hits] > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def lower_bound(hits: int, count: int, confidence: float = LEVEL) -> float:
    """The one-sided Clopper-Pearson lower bound of a rate after `hits` of `count`."""
    return 1 - upper_bound(count - hits, count, confidence)


def clopper_pearson(hits: int, count: int, confidence: float = LEVEL) -> tuple[float, float]:
    """The two-sided interval: each side misses with half of what the confidence leaves."""
    side = (1 + confidence) / 2
    return lower_bound(hits, count, side), upper_bound(hits, count, side)


# -- bootstrap ----------------------------------------------------------------


def draw_weights(groups: Array, draws: int, seed: int) -> Iterator[Array]:
    """Blocks of row weights, shape (some draws, rows): how often each row's group was drawn."""
    random = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    step = max(1, CELLS // len(groups))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = [random.integers(0, count, count) for _ in range(size)]
        times = np.stack([np.bincount(places, minlength=count) for places in drawn])
        yield times[:, groups].astype(float)


def all_figures(scores: Array, labels: Array, flagged: Array, weights: Array) -> dict[str, Array]:
    return {
        **weighted_rates(flagged, labels, weights),
        "auroc": weighted_auroc(scores, labels, weights),
        "ece": weighted_calibration(scores, labels, weights),
    }


def with_intervals(
    scores: Array, labels: Array, groups: Array, threshold: float, seed: int
) -> dict[str, Figure]:
    """Each figure's `value` and its 95 % interval `low`, `high`; `None` where there is none.

    The percentile bootstrap over groups (rows of one prompt), shape (rows,) as scores and
    labels. A rate of exactly 0 or 1 is one that no draw can move: its interval is
    Clopper-Pearson's, counting groups.
    """
    _, groups = np.unique(groups, return_inverse=True)
    flagged = flag(scores, threshold)
    values = all_figures(scores, labels, flagged, np.ones((1, len(labels))))
    blocks = [all_figures(scores, labels, flagged, w) for w in draw_weights(groups, DRAWS, seed)]
    bases = {"precision": flagged, "recall": labels == 1, "false_alarms": labels == 0}
    found = {}
    for name, value in values.items():
        drawn = np.concatenate([block[name] for block in blocks])
        base = bases.get(name)
        among = 0 if base is None else len(np.unique(groups[base]))
        found[name] = describe(float(value[0]), drawn, among)
    return found


def describe(value: float, drawn: Array, among: int) -> Figure:
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    if among and value in (0.0, 1.0):
        low, high = clopper_pearson(among if value else 0, among)
    else:
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low, high = np.quantile(drawn[~np.isnan(drawn)], ends)
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}
