"""Everything mmguard raises, by who can act on it.

A block is never an exception: it is a `Guarded` value.

    MmguardError
    ├── InputError        the caller: fix the request
    │   └── ImageError    ... a picture of it
    │       └── OversizeError  ... that has too many bytes, pixels, frames or scans
    ├── PolicyError       whoever wrote the policy file
    ├── UnknownName       whoever wrote the name of a detector, model, step or policy
    ├── BundleError       whoever ships the bundle: do not trust its scores
    ├── DetectorError     a detector failed while scoring; inside a flow this is `on_error`
    │   └── LateDetector  ... by taking longer than it may
    ├── ModelError        a model failed; `status` and `body` are its server's, where it has one
    ├── StepError         a repair step has no answer; inside a flow the next step is tried
    ├── DeadlineError     a repair step took too long; inside a flow the next step is tried
    ├── BatchError        some rows of a batch failed; `results` holds all of them
    └── MissingExtra      whoever installed mmguard: the message has the pip line
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class MmguardError(Exception):
    """Whatever mmguard raises on purpose."""


class InputError(MmguardError, ValueError):
    """A request that cannot be guarded as it is."""


class ImageError(InputError):
    """A picture that cannot, or must not, be decoded."""


class OversizeError(ImageError):
    """A picture beyond a limit of bytes, pixels, frames or scans: HTTP calls it 413."""


class PolicyError(MmguardError, ValueError):
    """A policy that contradicts itself or does not parse."""


class UnknownName(MmguardError, LookupError):
    """A name that nothing is registered under."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        from difflib import get_close_matches

        self.kind, self.name, self.known = kind, name, sorted(known)
        close = get_close_matches(name, self.known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(self.known) or 'none'}")


class BundleError(MmguardError):
    """A detector bundle that is incomplete or not what it says it is."""


class DetectorError(MmguardError):
    """A detector that failed while scoring."""


class ModelError(MmguardError):
    """A model that failed to answer; `retry` has its server's headers about asking again."""

    def __init__(self, message: str, *, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.body = status, body
        self.retry: dict[str, str] = {}


class StepError(MmguardError):
    """A repair step that does not apply, or has no answer: its words go into the trail."""


class DeadlineError(MmguardError):
    """An ask that outlasted the deadline of its repair step."""


class LateDetector(DetectorError, DeadlineError):
    """A detector that took longer than it may: to ask it again, row by row, is to wait again."""


class BatchError(MmguardError):
    """Some rows failed; `results` has every row's result or exception, in order."""

    def __init__(self, results: Sequence[Any]) -> None:
        self.results = list(results)
        failed = [(i, r) for i, r in enumerate(self.results) if isinstance(r, Exception)]
        where, first = failed[0]
        super().__init__(
            f"{len(failed)} of {len(self.results)} rows failed, the first is row {where}: {first};"
            " every row's result is in .results"
        )


class MissingExtra(MmguardError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs {package}: pip install 'mmguard[{extra}]'")
