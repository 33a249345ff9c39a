"""From what a guard wrote to p(unsafe): pure functions, strict about words.

A reading takes token probabilities at the place of the label where there are any, or else
the label itself. What is neither is a `DetectorError`: never "safe".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmguard.detect.families import Family
from mmguard.errors import DetectorError

# A token with its rivals: their text to their probability.
Step = tuple[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """p(unsafe) of one question, the categories that the guard listed, and how it was read."""

    score: float
    categories: tuple[str, ...] = ()
    reason: str = "words"


def weigh_labels(labels: Mapping[str, float], shares: Mapping[str, float], floor: float) -> float:
    """p(unsafe) among the labels, given each label's probability.

    Raises `DetectorError` where they are no probabilities, or hold less than `floor` together:
    then something else than a label was about to be written.
    """
    total = sum(shares.values())
    if not math.isfinite(total) or total <= 0 or total < floor:
        raise DetectorError(
            f"the guard's labels {sorted(labels)} have {total:.3g} of the probability,"
            f" not {floor}: is it of this family?"
        )
    return min(1.0, sum(labels[name] * share for name, share in shares.items()) / total)


def spelt(token: str, labels: Iterable[str]) -> str:
    """The one label that starts with this token, or an empty string."""
    start = token.strip().lower()
    found = [label for label in labels if start and label.lower().startswith(start)]
    return found[0] if len(found) == 1 else ""


def share_out(labels: Mapping[str, float], rivals: Mapping[str, float]) -> dict[str, float]:
    """Each label's probability, summed over the tokens that start it."""
    shares = dict.fromkeys(labels, 0.0)
    for token, share in rivals.items():
        if label := spelt(token, labels):
            shares[label] += share
    return shares


def find_label(steps: Sequence[Step], lead: str) -> Mapping[str, float]:
    """The rivals at the first word after `lead`; none if it was not written."""
    text, start = "", lead.strip()
    for token, rivals in steps:
        begun = text.rstrip().endswith(start) if start else not text.strip()
        if begun and token.strip():
            return rivals
        text += token
    return {}


def read_label(family: Family, lead: str, text: str) -> str:
    """The label in a guard's text; `DetectorError` if there is none, or more than one."""
    words = "|".join(re.escape(word) for word in family.labels)
    start = rf"(?:\A|\n|>)\s*{re.escape(lead.strip())}" if lead.strip() else r"\A"
    pattern = re.compile(rf"{start}\s*({words})(?=[\s<.,]|\Z)", re.IGNORECASE)
    found = {word.lower() for word in pattern.findall(text)}
    if len(found) != 1:
        raise DetectorError(
            f"the guard's answer holds {len(found)} labels after {lead.strip()!r}:"
            f" {text[:40]!r} is not one of {sorted(family.labels)}"
        )
    return next(label for label in family.labels if label.lower() in found)


def read_categories(family: Family, text: str) -> tuple[str, ...]:
    """Our names of the categories that a guard listed, in its order."""
    if not family.listed or family.listed not in text:
        return ()
    names = [name.strip() for name in re.split(r"[,\n]", text.split(family.listed, 1)[1])]
    return tuple(family.categories[name] for name in names if name in family.categories)


def read_answer(
    family: Family, lead: str, text: str, steps: Sequence[Step], floor: float
) -> Verdict:
    """The verdict of a whole answer, with the probabilities of its tokens where there are any."""
    shares = share_out(family.labels, find_label(steps, lead))
    total = sum(shares.values())
    if total > 0 and total >= floor:
        score, reason = weigh_labels(family.labels, shares, floor), "tokens"
    else:
        score, reason = family.labels[read_label(family, lead, text)], "words"
    return Verdict(score, read_categories(family, text) if score else (), reason)
