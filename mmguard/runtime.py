"""From names to objects: what answers the asks of a flow, in this thread or on a loop.

`Local` calls models and detectors as they are. `Concurrent` puts an event loop before it:
what arrives while a call is under way waits, and goes out together as the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from mmguard.clock import Work, awithin, tame, within
from mmguard.drive import AsyncPieces, Pieces
from mmguard.errors import DeadlineError, DetectorError, LateDetector, UnknownName
from mmguard.types import AnyRequest, Detector, Finding, Model, Reply, Sample

if TYPE_CHECKING:
    from mmguard.policy import Policy

T = TypeVar("T")
Item = TypeVar("Item")
MAX_BATCH = 64


@runtime_checkable
class AsyncModel(Protocol):
    """A model with an asynchronous side: `Concurrent` awaits it instead of using threads."""

    async def agenerate(self, request: AnyRequest) -> Reply: ...
    def astream(self, request: AnyRequest) -> AsyncGenerator[str | Reply, None]: ...


class Local:
    """Models and detectors by name, called in this thread.

    `timeout` bounds one call of a detector, in seconds; past it the call is a failure.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        detectors: Mapping[str, Detector],
        *,
        timeout: float | None = None,
    ) -> None:
        self.models, self.detectors, self.timeout = dict(models), dict(detectors), timeout

    def generate(self, model: str, requests: Sequence[AnyRequest]) -> Sequence[Reply]:
        start = time.perf_counter()
        replies = lookup("model", self.models, model).generate(requests)
        ms = (time.perf_counter() - start) * 1e3
        return [replace(reply, ms=ms) for reply in replies]

    def score(self, detector: str, samples: Sequence[Sample]) -> Sequence[Finding]:
        return within(self.timeout, lambda: self.rate(detector, samples), self.late(detector))

    def rate(self, detector: str, samples: Sequence[Sample]) -> Sequence[Finding]:
        """`score` for as long as it takes."""
        found = lookup("detector", self.detectors, detector)
        start = time.perf_counter()
        findings = found.score(samples)
        ms = (time.perf_counter() - start) * 1e3
        return [replace(finding, ms=ms) for finding in findings]

    def overdue(self, detector: str) -> None:
        """A call of it took too long: for whoever counts."""

    def late(self, detector: str) -> LateDetector:
        return LateDetector(f"detector {detector!r} took longer than {self.timeout} s")

    def open(self, model: str, request: AnyRequest) -> Pieces:
        yield from lookup("model", self.models, model).stream(request)


def lookup(kind: str, names: Mapping[str, T], name: str) -> T:
    try:
        return names[name]
    except KeyError:
        raise UnknownName(kind, name, names) from None


class Concurrent:
    """An asynchronous runtime over the same models and detectors; belongs to one event loop."""

    def __init__(self, local: Local, *, batch: int = MAX_BATCH) -> None:
        self.local, self.batch = local, batch
        self.lanes: dict[tuple[str, str], Lane[Any, Any]] = {}

    async def generate(self, model: str, request: AnyRequest) -> Reply:
        found = lookup("model", self.local.models, model)
        start = time.perf_counter()
        if isinstance(found, AsyncModel):
            reply = await found.agenerate(request)
        else:
            reply = await self.lane("generate", model).submit(request)
        return replace(reply, ms=(time.perf_counter() - start) * 1e3)

    async def score(self, detector: str, sample: Sample) -> Finding:
        if quick(self.local.detectors.get(detector), sample):
            return self.local.rate(detector, [sample])[0]
        start = time.perf_counter()
        finding: Finding = await self.lane("score", detector).submit(sample)
        return replace(finding, ms=(time.perf_counter() - start) * 1e3)

    def open(self, model: str, request: AnyRequest) -> AsyncPieces:
        found = lookup("model", self.local.models, model)
        if isinstance(found, AsyncModel):
            return found.astream(request)
        return pump(lambda: self.local.open(model, request))

    def lane(self, kind: str, name: str) -> Lane[Any, Any]:
        if (kind, name) not in self.lanes:
            local = self.local
            lane: Lane[Any, Any] = Lane(lambda items: local.generate(name, items), self.batch)
            if kind == "score":
                # In a batch of one that works row by row the first would wait for the last.
                calls = getattr(local.detectors.get(name), "at_once", None)
                size = 1 if calls else self.batch
                lane = Lane(lambda items: local.rate(name, items), size, calls or 1)
                # The loop keeps the time: in the thread it would take another thread.
                lane.seconds, lane.late = local.timeout, lambda: local.late(name)
                lane.overdue = lambda: local.overdue(name)
            self.lanes[kind, name] = lane
        return self.lanes[kind, name]


def quick(detector: Detector | None, sample: Sample) -> bool:
    """Whether a detector is done with this before a thread would have begun."""
    size = getattr(detector, "quick", 0)
    return size > 0 and len(sample.request.text if sample.reply is None else sample.reply) <= size


class Lane(Generic[Item, T]):
    """One model or detector: `calls` at a time, with all that waits, up to `batch` items each."""

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[T]], batch: int, calls: int = 1
    ) -> None:
        self.work, self.batch, self.calls = work, batch, calls
        self.seconds: float | None = None
        self.late: Callable[[], Exception] = DeadlineError
        self.overdue: Callable[[], object] = lambda: None
        self.waiting: list[tuple[Item, asyncio.Future[T]]] = []
        self.running: list[asyncio.Task[None]] = []

    async def submit(self, item: Item) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        self.running = [task for task in self.running if not task.done()]
        if len(self.running) < self.calls:
            self.running.append(asyncio.create_task(self.drain()))
        return await future

    async def drain(self) -> None:
        while self.waiting:
            taken, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
            # Whoever was cancelled while waiting needs no answer any more.
            await self.settle([(item, future) for item, future in taken if not future.done()])

    async def settle(self, members: Sequence[tuple[Item, asyncio.Future[T]]]) -> None:
        if not members:
            return
        try:
            results = await self.call(members)
        except Exception as exc:
            if len(members) > 1 and not isinstance(exc, DeadlineError):
                for member in members:
                    await self.settle([member])
                return
            for _, future in members:
                if not future.done():
                    future.set_exception(exc)
            return
        for (_, future), result in zip(members, results, strict=True):
            if not future.done():
                future.set_result(result)

    async def call(self, members: Sequence[tuple[Item, asyncio.Future[T]]]) -> list[T]:
        """One call for all of them, in time."""
        waiting, late = [future for _, future in members], self.late()
        work = in_thread(lambda: list(self.work([item for item, _ in members])), waiting)
        try:
            results = await awithin(self.seconds, work, late)
        except Exception as exc:
            if exc is late:
                self.overdue()
            raise
        if len(results) != len(members):
            raise DetectorError(f"{len(results)} answers for {len(members)} rows")
        return results


async def in_thread(work: Callable[[], T], waiting: Sequence[asyncio.Future[Any]] = ()) -> T:
    """Like `asyncio.to_thread`, in a daemon thread, which is told when nobody waits any more."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def target() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as exc:
            error = tame(exc)
        # The loop may be gone by now; then nobody waits either.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    thread = Work(target, "mmguard-lane")

    def leave(left: asyncio.Future[Any]) -> None:
        if all(one.done() for one in waiting):
            thread.gone.set()

    for one in waiting:
        one.add_done_callback(leave)
    thread.start()
    return await future


async def pump(open_pieces: Callable[[], Pieces]) -> AsyncPieces:
    """A blocking stream read by a thread of its own; closing this closes that."""
    loop, stop = asyncio.get_running_loop(), threading.Event()
    queue: asyncio.Queue[str | Reply | Exception | None] = asyncio.Queue()

    def put(item: str | Reply | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def target() -> None:
        try:
            with contextlib.closing(open_pieces()) as pieces:
                for piece in until(stop, pieces):
                    put(piece)
            put(None)
        except Exception as exc:
            put(exc)

    threading.Thread(target=target, daemon=True, name="mmguard-pump").start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()


def until(stop: threading.Event, pieces: Iterator[T]) -> Iterator[T]:
    for piece in pieces:
        if stop.is_set():
            return
        yield piece


def connect(
    policy: Policy,
    models: Mapping[str, Model],
    detectors: Mapping[str, Detector] | None = None,
    *,
    timeout: float | None = None,
) -> tuple[Policy, Local]:
    """The policy bound to its detectors' thresholds, and the runtime that can serve it.

    Detectors not given are loaded by name, and so are registered models. Raises
    `UnknownName` or `PolicyError` now rather than in the middle of a request.
    """
    from mmguard.bundles import load_detector

    named = {**models, **builtin(policy.models - set(models))}
    for name in policy.models:
        lookup("model", named, name)
    given = dict(detectors or {})
    loaded = {name: given.get(name) or load_detector(name) for name in policy.detectors}
    bound = policy.bind({name: detector.thresholds for name, detector in loaded.items()})
    return bound, Local(named, loaded, timeout=timeout)


def builtin(names: Iterable[str]) -> dict[str, Model]:
    """Those of the names that stand for a registered model which opens by its name alone."""
    from mmguard.models import open_model
    from mmguard.registry import names as registered

    known = set(registered("models")) - {"hf", "openai", "scripted"}
    return {name: open_model(name) for name in names if name in known}
