"""Thresholds that keep a promise: at most so many false alarms, or at least so much recall.

The threshold is found on the data that proves it, and the proof still holds. Thresholds are
tested in a fixed sequence, from those that keep the promise for certain towards those that
may not, each by an exact binomial test at the full level, and the sequence ends at the first
that fails: fixed-sequence testing in Learn then Test (Angelopoulos et al., arXiv 2110.01052).
As the rate only grows along the sequence, it may visit every threshold between 0 and 1
(Bates et al., arXiv 2101.02703, theorem 1), and whichever tested threshold is taken is good.
The test and the bound that is told are those of Clopper and Pearson (Biometrika 26, 1934).

Holds for traffic of which the rows are a random sample, and for the very detector that
scored them. A row without a score (NaN) counts against the promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mmguard.errors import InputError
from mmguard.evals.figures import Array
from mmguard.evals.intervals import LEVEL, lower_bound, tails, upper_bound

DIGITS = 4


@dataclass(frozen=True, slots=True)
class Bound:
    """A threshold and what is known about it.

    `kind` is `false_alarms` (a share of harmless rows) or `recall` (of harmful ones);
    `observed` is that share among the `rows` of that kind, `bound` its Clopper-Pearson
    bound: upper for false alarms, lower for recall.
    """

    kind: str
    threshold: float
    promise: float
    confidence: float
    rows: int
    observed: float
    bound: float


def rows_needed(rate: float, confidence: float = LEVEL) -> int:
    """The fewest rows that can prove a rate of at most `rate`: none of them may be hit.

    The smallest n with (1 - rate)^n <= 1 - confidence.
    """
    count = max(1, math.ceil(math.log(1 - confidence) / math.log1p(-rate)))
    # The division may round to either side of a whole number.
    while (1 - rate) ** count > 1 - confidence:
        count += 1
    while count > 1 and (1 - rate) ** (count - 1) <= 1 - confidence:
        count -= 1
    return count


def allowed(count: int, rate: float, confidence: float = LEVEL) -> int:
    """The most hits among `count` rows that still prove a rate of at most `rate`; -1 for none."""
    return int(np.searchsorted(tails(count, rate, count), 1 - confidence, side="right")) - 1


def bounded_threshold(
    scores: Array, labels: Array, max_false_alarms: float, confidence: float = LEVEL
) -> Bound:
    """The lowest threshold that flags at most this share of harmless rows, so far as can be told.

    Scores and labels have shape (rows,). With probability `confidence` over the rows, the
    share of all harmless traffic at or above the threshold is at most `max_false_alarms`.
    Raises `InputError` with the number of harmless rows needed where there are too few, and
    where the highest scores are those of harmless rows.
    """
    check_promise(max_false_alarms, confidence)
    harmless = np.where(np.isnan(scores), np.inf, scores)[labels == 0]
    spare = spare_rows(len(harmless), max_false_alarms, confidence, "false_alarms")
    floor = np.sort(harmless)[::-1][spare]
    if floor >= 1:
        raise InputError(hopeless(harmless >= 1, "harmless", spare, "score 1 or have no score"))
    above = scores[scores > floor]
    threshold = between(float(floor), float(above.min()) if len(above) else 1.0)
    hits = int((harmless >= threshold).sum())
    bound = upper_bound(hits, len(harmless), confidence)
    return Bound(
        "false_alarms",
        threshold,
        max_false_alarms,
        confidence,
        len(harmless),
        hits / len(harmless),
        bound,
    )


def recall_threshold(
    scores: Array, labels: Array, min_recall: float, confidence: float = LEVEL
) -> Bound:
    """The highest threshold that finds at least this share of harmful rows, so far as can be told.

    As `bounded_threshold`, for harmful rows: the miss rate is held to 1 - min_recall.
    """
    check_promise(min_recall, confidence)
    harmful = np.where(np.isnan(scores), -np.inf, scores)[labels == 1]
    spare = spare_rows(len(harmful), min_recall, confidence, "recall")
    ceiling = float(np.sort(harmful)[spare])
    if ceiling <= 0:
        raise InputError(hopeless(harmful <= 0, "harmful", spare, "score 0 or have no score"))
    below = scores[scores < ceiling]
    threshold = between(float(below.max()) if len(below) else 0.0, ceiling)
    hits = int((harmful >= threshold).sum())
    bound = lower_bound(hits, len(harmful), confidence)
    return Bound(
        "recall", threshold, min_recall, confidence, len(harmful), hits / len(harmful), bound
    )


def check_promise(rate: float, confidence: float) -> None:
    for name, value in (("rate", rate), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name} {value} must lie between 0 and 1, both excluded")


def spare_rows(count: int, promise: float, confidence: float, kind: str) -> int:
    """How many of so many rows may break the promise; `InputError` if there are too few rows."""
    alarms = kind == "false_alarms"
    rate = promise if alarms else 1 - promise
    needed = rows_needed(rate, confidence)
    if count < needed:
        rows = "harmless" if alarms else "harmful"
        what = f"{'at most' if alarms else 'at least'} {100 * promise:.4g} % of such rows flagged"
        raise InputError(
            f"{count} {rows} rows cannot prove {what} with {100 * confidence:.4g} % confidence:"
            f" that takes {needed} {rows} rows, {needed - count} more; collect them,"
            " promise less, or lower the confidence"
        )
    # With just enough rows, rounding may hide that none to spare is still a proof.
    return max(0, allowed(count, rate, confidence))


def hopeless(extreme: Array, kind: str, spare: int, how: str) -> str:
    return (
        f"{int(extreme.sum())} {kind} rows {how}, and the promise leaves room for {spare}:"
        " no threshold from 0 to 1 keeps it with this detector; weaken the promise"
    )


def between(low: float, high: float) -> float:
    """A number above `low` and at most `high`, short where it can be: half way if far apart."""
    middle = low + (high - low) / 2
    for digits in range(DIGITS, 17):
        if low < (short := round(middle, digits)) <= high:
            return short
    return high
