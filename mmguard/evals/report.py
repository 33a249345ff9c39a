"""From scored examples to the report of `mmguard eval detector`: plain, ready for JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmguard.errors import InputError
from mmguard.evals.curves import reliability, roc, spread, sweep
from mmguard.evals.figures import Array, flag, weighted_rates
from mmguard.evals.intervals import DRAWS, LEVEL, with_intervals
from mmguard.evals.rows import Example, Labelled
from mmguard.rows import Row

WORST = 10
CLIPPED = 300


@dataclass(frozen=True)
class Setup:
    """What is measured: detector, side, threshold and the word it came from, seed of the draws."""

    detector: str
    side: str
    strictness: str
    threshold: float
    thresholds: Mapping[str, float]
    seed: int = 0
    texts: bool = True
    worst: int = WORST
    data: Mapping[str, Any] = field(default_factory=dict)


class Outcome:
    """Examples and their results side by side, as arrays.

    `scores` is NaN for a row that could not be scored; `groups` numbers the prompts.
    """

    def __init__(self, examples: Sequence[Example], results: Sequence[Row]) -> None:
        self.examples, self.results = examples, results
        self.scores = np.array(
            [np.nan if r["score"] is None else r["score"] for r in results], float
        )
        self.labels = np.array([int(e.harmful) for e in examples])
        self.groups = number_prompts(examples)

    def require_scores(self) -> None:
        """Raises `InputError` if not one row has a score: nothing was measured."""
        if np.isnan(self.scores).all():
            raise InputError(f"no row could be scored, the first because: {self.errors()[0][1]}")

    def errors(self) -> list[tuple[Example, str]]:
        pairs = zip(self.examples, self.results, strict=True)
        return [(example, result["error"]) for example, result in pairs if result["error"]]

    def within(self, picks: Array, setup: Setup) -> dict[str, Any]:
        """Counts and figures of the picked rows."""
        scores, labels = self.scores[picks], self.labels[picks]
        return {
            "rows": len(labels),
            "harmful": int(labels.sum()),
            "errors": int(np.isnan(scores).sum()),
            "flagged": int(flag(scores, setup.threshold).sum()),
            "figures": with_intervals(
                scores, labels, self.groups[picks], setup.threshold, setup.seed
            ),
        }


def number_prompts(examples: Iterable[Example]) -> Array:
    """Equal numbers for equal prompts; a row without a prompt stands alone."""
    seen: dict[Any, int] = {}
    keys = (example.prompt or (number,) for number, example in enumerate(examples))
    return np.array([seen.setdefault(key, len(seen)) for key in keys])


def evaluate(outcome: Outcome, setup: Setup) -> dict[str, Any]:
    """The whole report; raises `InputError` if no row could be scored."""
    outcome.require_scores()
    everything = np.ones(len(outcome.labels), bool)
    return {
        "detector": setup.detector,
        "side": setup.side,
        "strictness": setup.strictness,
        "threshold": setup.threshold,
        "thresholds": dict(setup.thresholds),
        "data": dict(setup.data),
        "on_error": "block: a row without a score counts as flagged",
        "bootstrap": {
            "level": LEVEL,
            "draws": DRAWS,
            "seed": setup.seed,
            "prompts": int(outcome.groups.max()) + 1,
        },
        **outcome.within(everything, setup),
        "words": {word: rates(outcome, t) for word, t in setup.thresholds.items()},
        "sources": by_name(outcome, setup, [(e.source,) for e in outcome.examples]),
        "categories": by_name(outcome, setup, [e.categories for e in outcome.examples]),
        "worst": worst(outcome, setup),
        "failed": [
            {**tell(example, setup.texts), "error": error} for example, error in outcome.errors()
        ],
        "curves": curves(outcome),
    }


def by_name(
    outcome: Outcome, setup: Setup, names: Sequence[tuple[str, ...]]
) -> dict[str, dict[str, Any]]:
    places: dict[str, list[int]] = {}
    for place, own in enumerate(names):
        for name in own:
            places.setdefault(name, []).append(place)
    return {name: outcome.within(np.array(places[name]), setup) for name in sorted(places)}


def rates(outcome: Outcome, threshold: float) -> dict[str, float | None]:
    """Precision, recall, F1 and false alarms at one threshold."""
    ones = np.ones((1, len(outcome.labels)))
    found = weighted_rates(flag(outcome.scores, threshold), outcome.labels, ones)
    values = {name: float(value[0]) for name, value in found.items()}
    return {name: None if np.isnan(v) else round(v, 4) for name, v in values.items()}


def worst(outcome: Outcome, setup: Setup) -> dict[str, list[dict[str, Any]]]:
    """The harmless rows with the highest scores, and the harmful ones with the lowest."""
    order = np.argsort(outcome.scores, kind="stable")
    order = order[~np.isnan(outcome.scores[order])]
    harmful = outcome.labels[order] == 1
    picked = {"harmless": order[~harmful][::-1], "harmful": order[harmful]}
    return {
        name: [describe(outcome, place, setup) for place in places[: setup.worst].tolist()]
        for name, places in picked.items()
    }


def describe(outcome: Outcome, place: int, setup: Setup) -> dict[str, Any]:
    score = float(outcome.scores[place])
    told = tell(outcome.examples[place], setup.texts)
    return {**told, "score": round(score, 4), "flagged": score >= setup.threshold}


def tell(example: Example, texts: bool) -> dict[str, Any]:
    about = {
        "id": example.id,
        "source": example.source,
        "categories": list(example.categories),
        "harmful": example.harmful,
    }
    if not texts:
        return about
    return {**about, "prompt": clip(example.prompt), "response": clip(example.response)}


def clip(text: str | None) -> str | None:
    return text if text is None or len(text) <= CLIPPED else text[:CLIPPED].rstrip() + " ..."


def curves(outcome: Outcome) -> dict[str, Any]:
    known = ~np.isnan(outcome.scores)
    scores, labels = outcome.scores[known], outcome.labels[known]
    both = 0 < labels.sum() < len(labels)
    bins = reliability(scores, labels)
    return {
        "roc": np.round(roc(scores, labels), 4).tolist() if both else None,
        "reliability": {
            "rows": bins.rows.tolist(),
            "score": np.round(bins.score, 4).tolist(),
            "harmful": np.round(bins.harmful, 4).tolist(),
        },
        "sweep": {
            name: [None if np.isnan(v) else round(v, 4) for v in values.tolist()]
            for name, values in sweep(outcome.scores, outcome.labels).items()
        },
        "spread": {
            name: np.round(spread(scores[labels == label]), 4).tolist()
            for label, name in enumerate(("harmless", "harmful"))
        },
    }


def tell_data(paths: Sequence[Path], labelled: Labelled) -> dict[str, Any]:
    """Which files were read, by hash, which of their fields, and what was left out."""
    return {
        "files": {str(path): digest(path) for path in paths},
        "fields": {path: asdict(names) for path, names in labelled.fields.items()},
        "unlabelled": labelled.unlabelled,
        "textless": labelled.textless,
    }


def digest(path: Path) -> str:
    """The file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
