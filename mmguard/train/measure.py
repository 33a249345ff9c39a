"""A detector's figures on labelled training rows: what goes into an `eval.json`.

Knows any detector by its `score` alone; what is measured is what a policy would see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmguard.errors import InputError
from mmguard.evals.figures import (
    FALSE_ALARMS as FALSE_ALARMS,
    Array as Array,
    alarms as alarms,
    by_source as by_source,
    calibration as calibration,
    choose as choose,
    f1 as f1,
    figures as figures,
)
from mmguard.rows import make_sample, read_rows
from mmguard.types import Detector, Sample

Row = Mapping[str, Any]
SIDES = {"answer": ("response_harm", "response"), "request": ("prompt_harm", "prompt")}


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


def samples_of(rows: Sequence[Row], side: str) -> list[Sample]:
    """The rows as a detector sees them on this side, pictures left out."""
    hidden = {} if side == "answer" else {"response": None}
    return [make_sample({**row, **hidden, "image": None}, Path()) for row in rows]


def scores(detector: Detector, rows: Sequence[Row], side: str) -> tuple[Array, Array]:
    """The detector's scores of the labelled rows, and the labels."""
    kept = keep(rows, side)
    samples = samples_of(kept, side)
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
