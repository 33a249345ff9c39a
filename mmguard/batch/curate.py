"""Which rows are fit to train on: small blocks, each with the reason it gives.

A block is fed the rows in order and says why one is left out, or nothing. What it remembers
of earlier rows is its own.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from mmguard.batch.formats import Row, words
from mmguard.batch.seen import Seen

SPACE = re.compile(r"\s+")


class Block(Protocol):
    """Says why a row is left out; empty if it is not."""

    def __call__(self, row: Row) -> str: ...


def sift(
    rows: Iterable[Row], blocks: Iterable[Block], leave: Callable[[Row, str], object]
) -> Iterator[Row]:
    """The rows that every block lets through; `leave` gets the others and the first reason."""
    made = list(blocks)
    for row in rows:
        why = next((why for block in made if (why := block(row))), "")
        if why:
            leave(row, why)
        else:
            yield row


def whole(row: Row) -> str:
    """Answers that were cut short teach to stop in the middle."""
    return "" if row["finish"] in ("stop", "content_filter", "eos") else "cut short"


def spoken(row: Row) -> str:
    """Turns of tools and the like have no place in the formats."""
    roles = {turn["role"] for turn in row["messages"]}
    return "" if roles <= {"system", "user", "assistant"} else "a turn of a tool"


class Below:
    """Answers that score at least `most` are too near to harm to learn from."""

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, row: Row) -> str:
        score = row["answer_score"]
        return "" if score is None or score < self.most else "scores too high"


class Once:
    """Only the first of rows that ask, show and answer the same, but for case and space."""

    def __init__(self) -> None:
        self.seen = Seen()

    def __call__(self, row: Row) -> str:
        pictures = [picture["sha256"] for picture in row["pictures"]]
        told = "\0".join([even(words(row)), even(row["answer"]), *pictures])
        name = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
        if name in self.seen:
            return "said before"
        self.seen.add(name)
        return ""


def even(text: str) -> str:
    return SPACE.sub(" ", text).strip().lower()


class Refusals:
    """At most the share `most` of the rows so far may be plain refusals, by category.

    A model that learns from little else refuses all. The first `few` of each always pass.
    """

    def __init__(self, most: float, few: int = 10) -> None:
        self.most, self.few = most, few
        self.rows: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def __call__(self, row: Row) -> str:
        kind = next(iter(row["categories"]), "")
        if row["action"] == "block":
            allowed = max(self.few, self.most * (self.rows.total() + 1))
            if self.refused[kind] >= allowed:
                return "enough refusals"
            self.refused[kind] += 1
        self.rows[kind] += 1
        return ""
