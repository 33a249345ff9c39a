"""The last hour in memory: requests by decision, times by stage, the most in flight.

Ten seconds a slot. Times are counted in bins that grow by a tenth, so that a quantile is
within five percent; nothing here is anybody's words.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmguard.server.visit import Visit
from mmguard.types import Guarded

SECONDS, SLOTS = 10, 360
GROWTH, LEAST = math.log(1.1), 0.1
Bins = Counter[int]


@dataclass(slots=True)
class Slot:
    """Ten seconds: what became of requests, milliseconds by stage, the most in flight."""

    begun: int
    decisions: Counter[str] = field(default_factory=Counter)
    times: dict[str, Bins] = field(default_factory=dict)
    peak: int = 0

    def spend(self, stage: str, ms: float) -> None:
        place = math.floor(math.log(max(ms, LEAST) / LEAST) / GROWTH)
        self.times.setdefault(stage, Counter())[place] += 1


class Pulse:
    """Belongs to one event loop; `flying` tells how many requests are in flight now."""

    def __init__(self, flying: Callable[[], int], clock: Callable[[], float] = time.time) -> None:
        self.flying, self.clock = flying, clock
        self.slots: deque[Slot] = deque(maxlen=SLOTS)

    def slot(self) -> Slot:
        """The one that it is time for."""
        begun = int(self.clock() // SECONDS) * SECONDS
        if not self.slots or self.slots[-1].begun < begun:
            self.slots.append(Slot(begun))
        self.slots[-1].peak = max(self.slots[-1].peak, self.flying())
        return self.slots[-1]

    def answer(self, answers: Iterable[Guarded]) -> None:
        """Choices are decided, while their request is still in flight."""
        slot = self.slot()
        for guarded in answers:
            for stage, ms in spent(guarded).items():
                slot.spend(stage, ms)

    def leave(self, visit: Visit) -> None:
        """A request is over; one that asked for no choice does not count."""
        if visit.decision == "none":
            return
        slot = self.slot()
        slot.decisions[visit.decision] += 1
        slot.spend("whole", visit.seconds * 1e3)
        if visit.first is not None:
            slot.spend("first byte", visit.first * 1e3)

    def since(self, seconds: float) -> list[Slot]:
        """The slots of this many seconds up to now, the oldest first."""
        self.slot()
        oldest = self.clock() - seconds
        return [slot for slot in self.slots if slot.begun >= oldest]


def spent(guarded: Guarded) -> dict[str, float]:
    """Milliseconds by stage: checks of a stage run at once, calls of a model one by one."""
    found: dict[str, float] = {}
    for finding in guarded.trail:
        name = f"checks {finding.stage}"
        found[name] = max(found.get(name, 0.0), finding.ms)
    for call in guarded.calls:
        name = f"model {call.stage}"
        found[name] = found.get(name, 0.0) + call.reply.ms
    return {name: ms for name, ms in found.items() if ms > 0}


def merge(slots: Iterable[Slot]) -> dict[str, Bins]:
    """The times of several slots together."""
    merged: dict[str, Bins] = {}
    for slot in slots:
        for stage, bins in slot.times.items():
            merged.setdefault(stage, Counter()).update(bins)
    return merged


def quantile(bins: Mapping[int, int], share: float) -> float:
    """The milliseconds within which this share of all was done, from the middle of its bin."""
    left = share * sum(bins.values())
    for place in sorted(bins):
        left -= bins[place]
        if left <= 0:
            return round(LEAST * math.exp((place + 0.5) * GROWTH), 3)
    return 0.0


def figures(times: Mapping[str, Bins]) -> Iterator[dict[str, Any]]:
    """Each stage with its median, its 95th percentile, and how many times it was timed."""
    for stage, bins in times.items():
        yield {
            "stage": stage,
            "p50": quantile(bins, 0.5),
            "p95": quantile(bins, 0.95),
            "n": sum(bins.values()),
        }
