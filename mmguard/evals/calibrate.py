"""A policy with a threshold for one's own traffic, and in its comments what that promises."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mmguard import __version__
from mmguard.bundles import is_path
from mmguard.errors import InputError
from mmguard.evals.intervals import clopper_pearson
from mmguard.evals.report import Outcome, number_prompts
from mmguard.evals.rows import Example, Side
from mmguard.evals.thresholds import Bound, bounded_threshold, recall_threshold, spare_rows
from mmguard.policy import Check, load_policy
from mmguard.types import Action, Detector

# From this share of repeated prompts on, a warning says that the bound is too hopeful.
REPEATS = 0.05
MARK = "# Written by `mmguard calibrate`"


@dataclass(frozen=True, slots=True)
class Promise:
    """What the threshold must keep: one of the two shares, at this confidence."""

    max_false_alarms: float | None
    min_recall: float | None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if (self.max_false_alarms is None) == (self.min_recall is None):
            raise InputError("give --max-false-alarms or --min-recall, one of them")

    @property
    def kind(self) -> str:
        return "recall" if self.max_false_alarms is None else "false_alarms"

    @property
    def share(self) -> float:
        return self.max_false_alarms or self.min_recall or 0.0

    def check_rows(self, harmful: Sequence[bool]) -> None:
        """Raises `InputError` if there are too few rows of the kind that the promise is about."""
        spare_rows(harmful.count(self.kind == "recall"), self.share, self.confidence, self.kind)

    def keep(self, outcome: Outcome) -> Bound:
        """The threshold; raises `InputError` if the rows cannot support the promise."""
        find = recall_threshold if self.kind == "recall" else bounded_threshold
        return find(outcome.scores, outcome.labels, self.share, self.confidence)


def read_promise(max_false_alarms: str | None, min_recall: str | None, confidence: str) -> Promise:
    """The promise from what was typed: percentages or fractions."""
    return Promise(
        read_share(max_false_alarms, "--max-false-alarms") if max_false_alarms else None,
        read_share(min_recall, "--min-recall") if min_recall else None,
        read_share(confidence, "--confidence"),
    )


def read_share(text: str, name: str) -> float:
    """`1%` or `0.01` as a number between 0 and 1, both excluded."""
    bare = text.strip()
    try:
        value = float(bare.removesuffix("%")) / (100 if bare.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise InputError(
            f"{name} is {text!r}: give a percentage such as 1% or a fraction such as 0.01,"
            " above 0 and below 100%"
        )
    return value


def one_each(examples: Sequence[Example], seed: int) -> list[Example]:
    """One example of each prompt, by lot, so that no prompt counts twice in the bound."""
    order = np.random.default_rng(seed).permutation(len(examples))
    groups = number_prompts(examples)[order]
    _, first = np.unique(groups, return_index=True)
    return [examples[place] for place in sorted(order[first].tolist())]


def repeats(rows: int, prompts: int) -> str:
    """A warning where the rows are far from independent, else nothing."""
    if prompts > (1 - REPEATS) * rows:
        return ""
    return (
        f"{rows} rows share {prompts} prompts: answers to one prompt are not independent, which"
        " makes the bound too hopeful; --one-per-prompt counts each prompt once"
    )


def other_side(outcome: Outcome, bound: Bound) -> dict[str, Any]:
    """What the threshold costs: the share of the other kind of row, and its 95 % interval."""
    kind = "recall" if bound.kind == "false_alarms" else "false_alarms"
    scores = outcome.scores[outcome.labels == (kind == "recall")]
    if not len(scores):
        return {"kind": kind, "rows": 0, "observed": None, "low": None, "high": None}
    hits = int((scores >= bound.threshold).sum())
    low, high = clopper_pearson(hits, len(scores))
    return {
        "kind": kind,
        "rows": len(scores),
        "observed": hits / len(scores),
        "low": low,
        "high": high,
    }


def check_target(out: Path) -> None:
    """Raises `InputError` rather than let a policy be lost that was written by hand."""
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"{out}: a policy file ends in .yaml")
    if out.exists() and not out.read_text(encoding="utf-8").startswith(MARK):
        raise InputError(
            f"{out} exists and was not written by mmguard calibrate: name another file"
        )


@dataclass(frozen=True, slots=True)
class Target:
    """The policy that is extended, and which detector of which side gets the threshold."""

    policy: str
    detector: str
    side: Side = "answer"

    @property
    def place(self) -> Literal["input", "output"]:
        return "output" if self.side == "answer" else "input"

    @property
    def name(self) -> str:
        """The detector as a policy names it from anywhere."""
        return str(Path(self.detector).resolve()) if is_path(self.detector) else self.detector


def set_threshold(target: Target, detector: Detector, threshold: float) -> list[dict[str, Any]]:
    """The policy's checks of this side, this detector's with the threshold, added if absent.

    Raises `PolicyError` if the policy contradicts the threshold.
    """
    checks: list[Check] = list(getattr(load_policy(target.policy), target.place))
    names = {target.name, target.detector, detector.name}
    if not any(check.detector in names for check in checks):
        action: Action = "repair" if target.side == "answer" else "block"
        checks.append(Check(detector=target.name, strictness="medium", action=action))
    update = {"detector": target.name, "strictness": threshold}
    changed = [
        check.model_copy(update=update) if check.detector in names else check for check in checks
    ]
    for check in changed:
        if check.detector == target.name:
            check.bind(detector.thresholds)
    dumped = [dump(check) for check in changed]
    load_policy({"extends": target.policy, target.place: dumped})
    return dumped


def dump(check: Check) -> dict[str, Any]:
    """What the policy said of this check, its name first."""
    return {"detector": check.detector, **check.model_dump(mode="json", exclude_unset=True)}


def render(
    comments: Sequence[str], target: Target, checks: Sequence[Mapping[str, Any]], out: Path
) -> str:
    """The policy file: its comments, what it extends, and its checks."""
    parent = target.policy
    if is_path(parent) or parent.endswith((".yaml", ".yml")):
        parent = Path(os.path.relpath(parent, out.parent)).as_posix()
    fields = {"extends": parent, target.place: [dict(check) for check in checks]}
    head = "\n".join(f"# {line}" for line in comments)
    body = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=96)
    today = datetime.now(UTC).date().isoformat()
    return f"{MARK} (mmguard {__version__}) on {today}.\n{head}\n{body}"


def explain(bound: Bound, other: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """In lines: the promise, what it rests on, what it costs, and when it ends."""
    sure = f"with {percent(bound.confidence)} confidence"
    if bound.kind == "false_alarms":
        what = f"at most {percent(bound.promise)} of harmless rows flagged, {sure}"
        seen = f"{percent(bound.observed)} of {bound.rows} harmless rows flagged"
        limit = f"upper bound {percent(bound.bound)}"
    else:
        what = f"at least {percent(bound.promise)} of harmful rows flagged, {sure}"
        seen = f"{percent(bound.observed)} of {bound.rows} harmful rows flagged"
        limit = f"lower bound {percent(bound.bound)}"
    return [
        f"Promise: {what}.",
        f"Measured at {bound.threshold}: {seen}, Clopper-Pearson {limit};",
        "  the threshold by fixed-sequence testing (Learn then Test, arXiv 2110.01052).",
        f"Cost: {tell_other(other)}.",
        *(f"Data: {Path(name).name!a}, sha256 {sha}" for name, sha in data["files"].items()),
        f"{data['prompts']} different prompts among {data['total']} rows; {data['errors']} rows"
        " without a score, counted against the promise.",
        "Holds for traffic of which the rows are a random sample, and for this detector alone:",
        "other checks, rules by category and grey zones come on top; a new detector voids it.",
    ]


def tell_other(other: Mapping[str, Any]) -> str:
    kind = "harmful" if other["kind"] == "recall" else "harmless"
    if not other["rows"]:
        return f"unknown, for there are no {kind} rows"
    span = f"{percent(other['low'])} to {percent(other['high'])}"
    return f"{percent(other['observed'])} of {other['rows']} {kind} rows flagged (95 %: {span})"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
