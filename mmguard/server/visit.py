"""One request as it is seen from outside: who asked, how it went, how long it took.

Nothing of it is anybody's words: a caller's `x-request-id` is kept only if it looks like one.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mmguard.types import SEVERITY, Guarded

RANK: dict[str, int] = {"none": -1} | {str(name): rank for name, rank in SEVERITY.items()}
NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(slots=True)
class Visit:
    """Times in seconds; `guard` is what detectors took, `first` what the first byte did."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    scope: Mapping[str, Any] = field(default_factory=dict, repr=False)
    key: str = ""
    policy: str = "none"
    status: int = 0
    begun: float = field(default_factory=time.time)
    start: float = field(default_factory=time.perf_counter)
    guard: float = 0.0
    first: float | None = None
    streams: bool = False
    failed: bool = False
    left: bool = False
    ended: bool = False
    action: str = "none"
    choices: int = 0
    pictures: tuple[int, int] = (0, 0)

    @property
    def route(self) -> str:
        """The route's own path, once the request has found one."""
        return getattr(self.scope.get("route"), "path", "other")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def decision(self) -> str:
        """What became of the request; `gone`: the caller left before the end of the answer."""
        if self.status >= 500 or (self.failed and self.status < 400):
            return "failed"
        if self.left or not self.ended:
            return "gone"
        return "refused" if self.status >= 400 else self.action

    def take(self, answers: Iterable[Guarded]) -> None:
        """The strictest action counts, and the most pictures that a check saw."""
        for guarded in answers:
            self.choices += 1
            self.action = max(self.action, guarded.action, key=RANK.__getitem__)
            seen, total = guarded.coverage.images, guarded.coverage.images_total
            self.pictures = max(self.pictures[0], seen), max(self.pictures[1], total)

    def line(self) -> dict[str, Any]:
        """The access line."""
        seconds, first = self.seconds, self.first
        return {
            "time": datetime.fromtimestamp(self.begun, UTC).isoformat(),
            "request": self.id,
            "route": self.route,
            "status": self.status,
            "decision": self.decision,
            "policy": self.policy,
            "key": self.key,
            "choices": self.choices,
            "pictures": list(self.pictures),
            "ms": round(seconds * 1e3, 1),
            "guard_ms": round(self.guard * 1e3, 1),
            "first_ms": None if first is None else round(first * 1e3, 1),
        }


# The request that is being answered: set at the door, seen by every task that works on it.
VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def identify(given: str | None) -> str:
    """The caller's own name of the request, or a new one."""
    return given if given and NAME.fullmatch(given) else uuid.uuid4().hex


def number(usage: object, name: str) -> int:
    """A count of tokens as a server tells it, 0 where it tells none or nonsense."""
    found = usage.get(name) if isinstance(usage, Mapping) else None
    return found if isinstance(found, int) and 0 < found < 2**53 else 0
