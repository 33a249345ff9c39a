"""Five ways to run a flow: one, many in step, streamed, and the first and third in asyncio.

Drivers answer asks and decide nothing. A failed ask is thrown into its flow, which alone
knows what a failure means; a flow that ends by an exception hands it to the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from mmguard.asks import Answer, Ask, Emit, Flow, Generate, Read, Score, Together
from mmguard.clock import awithin, within
from mmguard.errors import DeadlineError, DetectorError, ModelError
from mmguard.types import AnyRequest, Finding, Reply, Sample

T = TypeVar("T")
P = TypeVar("P")
Pieces = Generator[str | Reply, None, None]
AsyncPieces = AsyncGenerator[str | Reply, None]


class Runtime(Protocol):
    """Everything the outside world must be able to do, a batch at a time."""

    def generate(self, model: str, requests: Sequence[AnyRequest]) -> Sequence[Reply]: ...
    def score(self, detector: str, samples: Sequence[Sample]) -> Sequence[Finding]: ...
    def open(self, model: str, request: AnyRequest) -> Pieces: ...


class AsyncRuntime(Protocol):
    """The same for one item at a time; batches form inside, from what waits together."""

    async def generate(self, model: str, request: AnyRequest) -> Reply: ...
    async def score(self, detector: str, sample: Sample) -> Finding: ...
    def open(self, model: str, request: AnyRequest) -> AsyncPieces: ...


def run(flow: Flow[T], runtime: Runtime) -> T:
    """The flow's result. Raises what the target model raised."""
    pieces = stream(flow, runtime)
    while True:
        try:
            next(pieces)
        except StopIteration as stop:
            result: T = stop.value
            return result


def run_many(flows: Iterable[Flow[T]], runtime: Runtime) -> list[T | Exception]:
    """The flows' results in order; a flow that fails has its exception in its place.

    All flows advance in step, so that asks of one model or detector make one call.
    """
    live = {i: whole(flow) for i, flow in enumerate(flows)}
    results: dict[int, T | Exception] = {}
    answers: Mapping[int, Any] = dict.fromkeys(live)
    while live:
        asks: dict[int, Ask] = {}
        for i in list(live):
            try:
                asks[i] = advance(live[i], answers[i])
            except StopIteration as stop:
                results[i] = stop.value
                del live[i]
            except Exception as exc:
                results[i] = exc
                del live[i]
        answers = reply_all(asks, runtime)
    return [results[i] for i in sorted(results)]


def stream(flow: Flow[T], runtime: Runtime) -> Generator[str, None, T]:
    """Text as it may leave; the generator's return value is the flow's result."""
    answer: Any = None
    with closing(flow), closing(Tap(runtime)) as tap:
        while True:
            try:
                ask = advance(flow, answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(ask, Emit):
                yield ask.text
                answer = None
            else:
                answer = tap.read(ask) if isinstance(ask, Read) else reply(ask, runtime)


async def arun(flow: Flow[T], runtime: AsyncRuntime) -> T:
    """`run` on an event loop; to cancel it is to cancel what it waits for.

    The target is asked for whole replies, which share batches.
    """
    async with aclosing(astream(whole(flow), runtime)) as pieces:
        results: list[Any] = [piece async for piece in pieces]
    result: T = results[-1]
    return result


async def astream(flow: Flow[T], runtime: AsyncRuntime) -> AsyncGenerator[str | T, None]:
    """Text as it may leave, and last of all the flow's result."""
    answer: Any = None
    with closing(flow):
        async with aclosing(AsyncTap(runtime)) as tap:
            while True:
                try:
                    ask = advance(flow, answer)
                except StopIteration as stop:
                    yield stop.value
                    return
                if isinstance(ask, Emit):
                    yield ask.text
                    answer = None
                elif isinstance(ask, Read):
                    answer = await tap.read(ask)
                else:
                    answer = await areply(ask, runtime)


def advance(flow: Flow[T], answer: Any) -> Ask:
    """The flow's next ask, after it took this answer or this failure."""
    return flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)


def whole(flow: Flow[T]) -> Flow[T]:
    """The flow, with all that it reads in one piece: it asks models for whole replies."""
    answer: Any = None
    kept: tuple[Read, Reply] | None = None
    with closing(flow):
        while True:
            try:
                ask = advance(flow, answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(ask, Read) and ask.enough:
                answer = kept = None
                continue
            if kept and kept[0] == ask:
                answer, kept = kept[1], None
                continue
            try:
                answer = yield Generate(ask.model, ask.request) if isinstance(ask, Read) else ask
            except Exception as exc:
                answer = exc
            if isinstance(ask, Read) and isinstance(answer, Reply):
                kept, answer = (ask, answer), answer.text


# -- answering ----------------------------------------------------------------


def reply(ask: Ask, runtime: Runtime) -> Any:
    """One ask's answer or failure; of several, in order, up to the one that settles it."""
    if not isinstance(ask, Together):
        return call([ask], runtime)[0]
    if ask.stop is None:
        return reply_all({0: ask}, runtime)[0]
    answers: list[Answer] = []
    for one in ask.asks:
        answers += call([one], runtime)
        if ask.stop(len(answers) - 1, answers[-1]):
            break
    return answers


def reply_all(asks: Mapping[int, Ask], runtime: Runtime) -> dict[int, Any]:
    """The answers to many flows' asks, by one call for each model and detector."""
    flat = [one for ask in asks.values() for one in parts(ask)]
    lanes: defaultdict[tuple[type[Ask], str, float | None], list[int]] = defaultdict(list)
    for k, one in enumerate(flat):
        lanes[lane(one)].append(k)
    answers: dict[int, Answer | None] = {}
    for places in lanes.values():
        answers.update(zip(places, call([flat[k] for k in places], runtime), strict=True))
    ordered = (answers[k] for k in range(len(flat)))
    return {i: collect(ask, [next(ordered) for _ in parts(ask)]) for i, ask in asks.items()}


def parts(ask: Ask) -> Sequence[Ask]:
    return ask.asks if isinstance(ask, Together) else (ask,)


def lane(ask: Ask) -> tuple[type[Ask], str, float | None]:
    """What asks must share to be answered by one call."""
    match ask:
        case Generate(name, _, timeout) | Score(name, _, timeout):
            return type(ask), name, timeout
        case _:
            return type(ask), "", None


def collect(ask: Ask, answers: list[Any]) -> Any:
    """One flow's share: of several answers, those up to the one that settles it."""
    if not isinstance(ask, Together):
        return answers[0]
    if ask.stop is None:
        return answers
    settled = (i for i, answer in enumerate(answers) if ask.stop(i, answer))
    return answers[: next(settled, len(answers)) + 1]


def call(asks: Sequence[Ask], runtime: Runtime) -> Sequence[Any]:
    """One call for asks of one lane; where it fails, one each, so that a bad row fails alone."""
    try:
        return perform(asks, runtime)
    except DeadlineError as exc:
        # What hangs together would hang again, one by one.
        return [exc] * len(asks)
    except Exception as exc:
        if len(asks) == 1:
            return [exc]
        return [call([ask], runtime)[0] for ask in asks]


def perform(asks: Sequence[Any], runtime: Runtime) -> Sequence[Any]:
    match asks[0]:
        case Generate(model, _, timeout):
            requests = [ask.request for ask in asks]
            replies = within(timeout, lambda: runtime.generate(model, requests), late(timeout))
            return exact(replies, len(asks), Reply, ModelError(f"model {model!r} {SHORT}"))
        case Score(detector, _, timeout):
            samples = [ask.sample for ask in asks]
            findings = within(timeout, lambda: runtime.score(detector, samples), late(timeout))
            return exact(
                findings, len(asks), Finding, DetectorError(f"detector {detector!r} {SHORT}")
            )
        case Emit():
            return [None] * len(asks)
        case _:
            raise TypeError(f"no driver answers {asks[0]!r} here")


def late(timeout: float | None) -> DeadlineError:
    return DeadlineError(f"no answer within the {timeout or 0:.3g} s that the step had left")


SHORT = "did not answer each row with one value of its kind"


def exact(answers: Sequence[T], count: int, kind: type[T], error: Exception) -> Sequence[T]:
    if len(answers) != count or not all(isinstance(answer, kind) for answer in answers):
        raise error
    return answers


async def areply(ask: Ask, runtime: AsyncRuntime) -> Any:
    """`reply`, with the asks of a `Together` under way at once."""
    try:
        match ask:
            case Generate(model, request, timeout):
                return await awithin(timeout, runtime.generate(model, request), late(timeout))
            case Score(detector, sample, timeout):
                return await awithin(timeout, runtime.score(detector, sample), late(timeout))
            case Together():
                return await aall(ask, runtime)
            case _:
                raise TypeError(f"no driver answers {ask!r} here")
    except Exception as exc:
        return exc


async def aall(ask: Together, runtime: AsyncRuntime) -> list[Answer]:
    if len(ask.asks) == 1:
        return [await areply(ask.asks[0], runtime)]
    tasks = [asyncio.ensure_future(areply(one, runtime)) for one in ask.asks]
    answers: list[Answer] = []
    try:
        for task in tasks:
            answers.append(await task)
            if ask.stop and ask.stop(len(answers) - 1, answers[-1]):
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers


class Tap:
    """The stream that a flow reads, opened at its first `Read`, closed at another's or its end."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.pieces: Pieces | None = None
        self.source: Read | None = None
        self.seconds = 0.0

    def read(self, ask: Read) -> str | Reply | Exception | None:
        try:
            if self.pieces is None or self.source != ask:
                self.close()
            if ask.enough:
                return None
            if self.pieces is None:
                self.source, self.pieces = ask, self.runtime.open(ask.model, ask.request)
                self.seconds = 0.0
            start = time.perf_counter()
            piece = timed(next(self.pieces, BROKEN), self, start)
            if not isinstance(piece, str):
                self.close()
            return piece
        except Exception as exc:
            return exc

    def close(self) -> None:
        if self.pieces is not None:
            self.pieces.close()
            self.pieces = None


class AsyncTap:
    """`Tap` on an event loop."""

    def __init__(self, runtime: AsyncRuntime) -> None:
        self.runtime = runtime
        self.pieces: AsyncPieces | None = None
        self.source: Read | None = None
        self.seconds = 0.0

    async def read(self, ask: Read) -> str | Reply | Exception | None:
        try:
            if self.pieces is None or self.source != ask:
                await self.aclose()
            if ask.enough:
                return None
            if self.pieces is None:
                self.source, self.pieces = ask, self.runtime.open(ask.model, ask.request)
                self.seconds = 0.0
            start = time.perf_counter()
            piece = timed(await anext(self.pieces, BROKEN), self, start)
            if not isinstance(piece, str):
                await self.aclose()
            return piece
        except Exception as exc:
            return exc

    async def aclose(self) -> None:
        if self.pieces is not None:
            await self.pieces.aclose()
            self.pieces = None


def timed(piece: P, tap: Tap | AsyncTap, start: float) -> P:
    """The piece; a reply that tells no time of its own has that which its stream was waited for."""
    tap.seconds += time.perf_counter() - start
    if isinstance(piece, Reply) and not piece.ms:
        return replace(piece, ms=tap.seconds * 1e3)
    return piece


# A stream that just ends may have been cut off anywhere: that must not pass for an answer.
BROKEN = ModelError("the model's stream ended without its reply")
