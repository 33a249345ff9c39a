"""Runs of one target: each failure is kept once, and fuzzing goes on."""

from __future__ import annotations

import hashlib
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fuzz.targets import Target


@dataclass(slots=True)
class Box:
    """A target that never raises: inputs that break it lie in `folder`, one for each reason."""

    target: Target
    folder: Path
    cases: int = 0
    reasons: set[str] = field(default_factory=set)

    def __call__(self, data: bytes) -> None:
        self.cases += 1
        try:
            self.target(data)
        except Exception as exc:
            self.keep(data, exc)

    def keep(self, data: bytes, exc: Exception) -> None:
        last = traceback.extract_tb(exc.__traceback__)[-1]
        # A message names the input; where it was raised, and its first words, tell the reason.
        reason = f"{type(exc).__name__} {last.name}:{last.lineno} {str(exc)[:40]}"
        if reason in self.reasons:
            return
        self.reasons.add(reason)
        name = hashlib.sha256(data).hexdigest()[:12]
        (self.folder / name).write_bytes(data)
        (self.folder / f"{name}.txt").write_text(
            f"{reason}\n\n{traceback.format_exc()}", encoding="utf-8"
        )


def mutate(
    data: bytes, words: Sequence[bytes], others: Sequence[bytes], luck: random.Random
) -> bytes:
    """A few random changes: bytes, words, pieces of the same or of another input."""
    made = bytearray(data)
    for _ in range(luck.randint(1, 4)):
        here = luck.randint(0, len(made))
        there = min(len(made), here + luck.randint(0, 12))
        other = luck.choice(others)
        start = luck.randint(0, len(other))
        made[here:there] = luck.choice(
            [
                bytes([luck.randrange(256)]),
                luck.choice(words),
                b"",
                made[here:there] * 2,
                other[start : start + luck.randint(0, 40)],
            ]
        )
    return bytes(made)


def play(box: Box, inputs: Sequence[bytes], words: Sequence[bytes], seconds: float) -> None:
    """The inputs themselves, then random changes of them; for where there is no atheris."""
    luck, end = random.Random(0), time.monotonic() + seconds
    for data in inputs:
        box(data)
    while time.monotonic() < end:
        box(mutate(luck.choice(inputs), words, inputs, luck))
