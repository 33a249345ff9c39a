"""What a flow asks the world for, and the typed way to ask it.

A flow yields asks and is sent their answers; it does no I/O. Any stage that needs a model,
captioning and judging included, is a `Generate` under another name: there is no sixth ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mmguard.errors import DeadlineError, StepError
from mmguard.types import AnyRequest, Finding, Reply, Sample

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Generate:
    """A whole reply of a model, within `timeout` seconds if it is given."""

    model: str
    request: AnyRequest
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A detector's finding about a sample, within `timeout` seconds if it is given."""

    detector: str
    sample: Sample
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """The next piece of a model's streamed reply; at its end the whole `Reply`.

    One stream is read at a time. With `enough` it ends here: no model works on for nobody.
    """

    model: str
    request: AnyRequest
    enough: bool = False


@dataclass(frozen=True, slots=True)
class Emit:
    """Text for the caller: from here on it has left."""

    text: str


Answer = Reply | Finding | Exception


@dataclass(frozen=True, slots=True)
class Together:
    """Several asks at once. Their answers come in order, failures as values.

    `stop(i, answer)` says that nothing after the i-th answer matters: the driver may cancel
    the rest, and the answers end there, whichever came first by the clock. Without it all
    are wanted.
    """

    asks: tuple[Generate | Score, ...]
    stop: Callable[[int, Answer], bool] | None = None


Ask = Generate | Score | Read | Emit | Together
Flow = Generator[Ask, Any, T]


def generate(model: str, request: AnyRequest) -> Flow[Reply]:
    reply: Reply = yield Generate(model, request)
    return reply


def read(model: str, request: AnyRequest) -> Flow[str | Reply]:
    piece: str | Reply = yield Read(model, request)
    return piece


def leave(model: str, request: AnyRequest) -> Flow[None]:
    """Read no further."""
    yield Read(model, request, enough=True)


def emit(text: str) -> Flow[None]:
    """Let text out; nothing is asked for an empty one."""
    if text:
        yield Emit(text)


def together(
    asks: tuple[Generate | Score, ...], stop: Callable[[int, Answer], bool] | None = None
) -> Flow[list[Answer]]:
    answers: list[Answer] = yield Together(asks, stop)
    return answers


def bound(flow: Flow[T], seconds: float | None) -> Flow[T]:
    """A flow that may only ask models and detectors, each for what is left of `seconds`.

    Time is what the answers say they took: the flow itself looks at no clock.
    """
    left = math.inf if seconds is None else seconds
    answer: Any = None
    with closing(flow):
        while True:
            try:
                ask = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if left <= 0:
                raise DeadlineError(f"the step took longer than {seconds} s")
            try:
                answer = yield limit(ask, left)
            except Exception as exc:
                answer = exc
            left -= spent(answer)


def limit(ask: Ask, left: float) -> Ask:
    if isinstance(ask, Together):
        return replace(ask, asks=tuple(shorten(one, left) for one in ask.asks))
    if isinstance(ask, Generate | Score):
        return shorten(ask, left)
    raise StepError("a step may ask models and detectors only: its text has passed no check")


def shorten(ask: Generate | Score, left: float) -> Generate | Score:
    timeout = min(left, ask.timeout or math.inf)
    return replace(ask, timeout=timeout if timeout < math.inf else None)


def spent(answer: Any) -> float:
    """Seconds that an answer took; of several at once the longest counts."""
    if isinstance(answer, DeadlineError):
        return math.inf
    if isinstance(answer, list):
        return max((spent(one) for one in answer), default=0.0)
    return answer.ms / 1e3 if isinstance(answer, Reply | Finding) else 0.0
