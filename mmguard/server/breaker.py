"""Circuit breakers: a detector or a model that keeps failing is not asked for a while.

Its failure then comes at once, and the policy says what that means, as for any other. The
target's drafts have no breaker: an upstream's errors are its caller's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import Field

from mmguard.clock import abandoned
from mmguard.errors import DetectorError, MmguardError, ModelError
from mmguard.fields import Strict
from mmguard.runtime import Local
from mmguard.types import Detector, Finding, Sample
from mmguard.verdict import is_probability

log = logging.getLogger("mmguard.server")
Clock = Callable[[], float]
State = Literal["closed", "trial", "open"]
Kind = Literal["detector", "model"]
ERRORS: Mapping[Kind, type[MmguardError]] = {"detector": DetectorError, "model": ModelError}


class Breaking(Strict):
    """After how many `failures` in a row a part is not asked, and for how many `seconds`."""

    failures: Annotated[int, Field(ge=1)] = 5
    seconds: Annotated[float, Field(gt=0)] = 30


class Breaker:
    """One part: closed, or open for a while, and then on trial.

    On trial one call is let through: its success closes, its failure opens again. May be used
    from any thread.
    """

    def __init__(self, kind: Kind, name: str, rule: Breaking, clock: Clock) -> None:
        self.kind, self.name, self.rule, self.clock = kind, name, rule, clock
        self.row = self.opened = 0
        self.since: float | None = None
        self.trying = False
        self.lock = threading.Lock()

    @property
    def state(self) -> State:
        if self.since is None:
            return "closed"
        resting = not self.trying and self.clock() - self.since < self.rule.seconds
        return "open" if resting else "trial"

    def admit(self) -> bool:
        """Whether this call is the trial. Raises where the part is not to be asked."""
        with self.lock:
            if self.state == "closed":
                return False
            if self.state == "open" or self.trying:
                raise self.error()
            self.trying = True
            return True

    def error(self) -> MmguardError:
        told = f"{self.kind} {self.name!r} failed {self.row} times in a row"
        return ERRORS[self.kind](f"{told}: it is asked again within {self.rule.seconds:g} s")

    def succeed(self) -> None:
        with self.lock:
            if self.since is not None:
                log.warning("%s %s works again", self.kind, self.name)
            self.row, self.since, self.trying = 0, None, False

    def fail(self) -> None:
        """A call failed. One that had begun before the part was given up changes nothing."""
        with self.lock:
            if self.state == "open":
                return
            self.row += 1
            if self.trying or self.row >= self.rule.failures:
                self.since, self.trying = self.clock(), False
                self.opened += 1
                log.error("%s %s failed %d times in a row", self.kind, self.name, self.row)

    def leave(self, trial: bool) -> None:
        """A call came to no end: nothing is known, and another may be the trial."""
        with self.lock:
            self.trying = self.trying and not trial

    @contextmanager
    def asked(self) -> Iterator[None]:
        """While the part is asked. Raises at once where it is not to be."""
        trial = self.admit()
        try:
            yield
        except ModelError as exc:
            # What a server refuses says nothing about the next request.
            if exc.status is not None and exc.status < 500:
                self.leave(trial)
            else:
                self.fail()
            raise
        except Exception:
            self.fail()
            raise
        except BaseException:
            self.leave(trial)
            raise
        self.succeed()


class Breakers:
    """Those of one sidecar, each made when its part is first asked."""

    def __init__(self, rule: Breaking, clock: Clock = time.monotonic) -> None:
        self.rule, self.clock = rule, clock
        self.known: dict[tuple[Kind, str], Breaker] = {}

    def find(self, kind: Kind, name: str) -> Breaker:
        made = Breaker(kind, name, self.rule, lambda: self.clock())
        return self.known.setdefault((kind, name), made)

    def all(self) -> list[Breaker]:
        return list(self.known.values())

    def open(self) -> set[tuple[Kind, str]]:
        return {(b.kind, b.name) for b in self.all() if b.state == "open"}


class Tried(Local):
    """`Local` without models, whose detectors have breakers: each call counts once."""

    def __init__(
        self, detectors: Mapping[str, Detector], breakers: Breakers, timeout: float
    ) -> None:
        super().__init__({}, detectors, timeout=timeout)
        self.breakers = breakers

    def rate(self, detector: str, samples: Sequence[Sample]) -> Sequence[Finding]:
        breaker = self.breakers.find("detector", detector)
        if breaker.state == "open":
            # Whoever was waiting when it was given up.
            raise breaker.error()
        try:
            found = super().rate(detector, samples)
        except BaseException:
            breaker.fail()
            raise
        if abandoned():
            # It came too late, which has been counted.
            return found
        sound = len(found) == len(samples) and any(map(is_sound, found))
        breaker.succeed() if sound else breaker.fail()
        return found

    def overdue(self, detector: str) -> None:
        self.breakers.find("detector", detector).fail()


def is_sound(finding: Finding) -> bool:
    return not finding.error and is_probability(finding.score)
