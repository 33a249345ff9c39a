"""What a flow asks the world for, and the typed way to ask it.

A flow yields asks and is sent their answers; it does no I/O. Any stage that needs a model,
captioning and judging included, is a `Generate` under another name: there is no sixth ask.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from mmguard.types import AnyRequest, Finding, Reply, Request, Sample

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Generate:
    """A whole reply of a model."""

    model: str
    request: AnyRequest


@dataclass(frozen=True, slots=True)
class Score:
    """A detector's finding about a sample."""

    detector: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Read:
    """The next piece of the target's streamed reply; at its end the whole `Reply`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Emit:
    """Text for the caller: from here on it has left."""

    text: str


Answer = Reply | Finding | Exception


@dataclass(frozen=True, slots=True)
class Together:
    """Several asks at once. Their answers come in order, failures as values.

    `stop(i, answer)` says that nothing after the i-th answer matters: the driver may cancel
    the rest, and the answers end there, whichever came first by the clock.
    """

    asks: tuple[Generate | Score, ...]
    stop: Callable[[int, Answer], bool]


Ask = Generate | Score | Read | Emit | Together
Flow = Generator[Ask, Any, T]


def generate(model: str, request: AnyRequest) -> Flow[Reply]:
    reply: Reply = yield Generate(model, request)
    return reply


def read(request: Request) -> Flow[str | Reply]:
    piece: str | Reply = yield Read(request)
    return piece


def emit(text: str) -> Flow[None]:
    """Let text out; nothing is asked for an empty one."""
    if text:
        yield Emit(text)


def together(
    asks: tuple[Generate | Score, ...], stop: Callable[[int, Answer], bool]
) -> Flow[list[Answer]]:
    answers: list[Answer] = yield Together(asks, stop)
    return answers
