"""Drivers and runtimes: batches, failures, order, cancellation, disconnects."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from mmguard import drive, guard, wrap
from mmguard.asks import Flow, Generate, Score, together
from mmguard.errors import ModelError, UnknownName
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.runtime import Concurrent, Local, connect
from mmguard.types import AnyRequest, Finding, Guarded, Reply, Sample
from tests.world import BAD, SEEN, ask, harm_detector, make_policy, make_world, words


class Counting(ScriptedModel):
    """Keeps the size of every batch."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.batches: list[int] = []

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        self.batches.append(len(requests))
        return super().generate(requests)


def picky(request: AnyRequest) -> str:
    if "poison" in words(request):
        raise ModelError("this row is bad", status=400)
    return "fine"


def test_lockstep_batches() -> None:
    target = Counting()
    policy, runtime = make_world(target=target)
    results = drive.run_many([guard(ask(str(i)), policy) for i in range(5)], runtime)
    assert target.batches == [5]
    assert [r.text[0] for r in results if isinstance(r, Guarded)] == list("01234")


def test_a_bad_row_fails_alone() -> None:
    policy, runtime = make_world(target=Counting(picky))
    rows = [ask("one"), ask("poison"), ask("three")]
    good, bad, last = drive.run_many([guard(row, policy) for row in rows], runtime)
    assert isinstance(good, Guarded)
    assert isinstance(last, Guarded)
    assert isinstance(bad, ModelError)
    assert bad.status == 400


def test_no_flows() -> None:
    assert drive.run_many([], make_world()[1]) == []


class Terse(ScriptedModel):
    """Answers one row, however many it got."""

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        return super().generate(requests[:1])


def test_a_model_that_loses_rows_is_asked_again() -> None:
    policy, runtime = make_world(target=Terse())
    results = drive.run_many([guard(ask(str(i)), policy) for i in range(3)], runtime)
    assert [r.text[0] for r in results if isinstance(r, Guarded)] == list("012")


def strange() -> Flow[None]:
    yield "tea"  # type: ignore[misc]  # what a plugin's step might ask


def test_strange_asks_are_refused() -> None:
    _, runtime = make_world()
    with pytest.raises(TypeError, match="no driver answers 'tea'"):
        drive.run(strange(), runtime)
    with pytest.raises(TypeError, match="no driver answers 'tea'"):
        asyncio.run(drive.arun(strange(), Concurrent(runtime)))


def test_reads_of_a_lockstep_batch_are_one_call() -> None:
    target = Counting()
    policy, runtime = make_world(target=target)
    drive.run_many([guard(ask(str(i)), policy, stream=True) for i in range(3)], runtime)
    assert target.batches == [3]


class Watched(ScriptedModel):
    """Notes when its stream is closed."""

    closed = False

    def stream(self, request: AnyRequest) -> Any:
        try:
            for i in range(1000):
                yield f"piece {i} "
            yield Reply("never")
        finally:
            self.closed = True


WINDOW = {"stream": {"mode": "window", "window": 8, "hold": 4}}


def test_disconnect_closes_the_upstream() -> None:
    target = Watched()
    policy, runtime = make_world(make_policy(**WINDOW), target=target)
    flow = drive.stream(guard(ask(), policy, stream=True), runtime)
    next(flow)
    flow.close()
    assert target.closed


def test_disconnect_closes_the_upstream_on_a_loop() -> None:
    target = Watched()
    policy, runtime = make_world(make_policy(**WINDOW), target=target)

    async def listen() -> None:
        flow = drive.astream(guard(ask(), policy, stream=True), Concurrent(runtime))
        await anext(flow)
        await flow.aclose()

    asyncio.run(listen())
    wait_until(lambda: target.closed)


def wait_until(done: Any) -> None:
    for _ in range(500):
        if done():
            return
        time.sleep(0.01)
    raise TimeoutError


def test_stream_errors_reach_the_caller() -> None:
    def script(request: AnyRequest) -> str:
        raise ModelError("gone", status=502)

    policy, runtime = make_world(target=ScriptedModel(script))
    with pytest.raises(ModelError, match="gone"):
        list(drive.stream(guard(ask(), policy, stream=True), runtime))

    async def listen() -> None:
        async for _ in drive.astream(guard(ask(), policy, stream=True), Concurrent(runtime)):
            pass

    with pytest.raises(ModelError, match="gone"):
        asyncio.run(listen())


def test_concurrent_requests_share_batches() -> None:
    class Slow(Counting):
        def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
            time.sleep(0.02)
            return super().generate(requests)

    target = Slow()
    policy, runtime = make_world(target=target)

    async def crowd() -> list[Guarded]:
        loop = Concurrent(runtime)
        flows = [drive.arun(guard(ask(str(i)), policy), loop) for i in range(9)]
        return await asyncio.gather(*flows)

    results = asyncio.run(crowd())
    assert [r.text[0] for r in results] == list("012345678")
    assert sum(target.batches) == 9
    assert max(target.batches) > 1


def test_the_first_does_not_wait_for_the_last() -> None:
    """A detector that takes two calls at once gets two, a row each, in the order they came."""
    lock, both = threading.Lock(), threading.Barrier(2, timeout=20)
    calls: list[str] = []
    told: dict[int, int] = {}

    class Two(ScriptedDetector):
        at_once = 2

        def score(self, samples: Sequence[Sample]) -> list[Finding]:
            with lock:
                calls.append("".join(sample.reply or "" for sample in samples))
            both.wait()
            return super().score(samples)

    async def one(runtime: Concurrent, number: int) -> None:
        finding = await runtime.score("two", Sample(ask("hi"), str(number)))
        assert finding.score == number / 10
        told[number] = len(calls)

    async def together() -> None:
        detector = Two(lambda sample: int(sample.reply or "") / 10)
        runtime = Concurrent(Local({}, {"two": detector}))
        await asyncio.gather(*(one(runtime, i) for i in range(6)))

    asyncio.run(together())
    assert sorted(calls) == ["0", "1", "2", "3", "4", "5"]
    assert set(calls[:2]) == {"0", "1"}
    assert told[0] < 6, "the first had to wait for all"


def test_a_bad_row_fails_alone_on_a_loop() -> None:
    policy, runtime = make_world(target=Counting(picky))

    async def crowd() -> list[Any]:
        loop = Concurrent(runtime)
        flows = [drive.arun(guard(ask(t), policy), loop) for t in ("a", "poison", "b")]
        return await asyncio.gather(*flows, return_exceptions=True)

    good, bad, last = asyncio.run(crowd())
    assert (good.text, type(bad), last.text) == ("fine", ModelError, "fine")


def test_lane_notices_lost_rows() -> None:
    policy, runtime = make_world(detectors=[Lossy(lambda s: 0.0, name="harm")])
    guarded = asyncio.run(drive.arun(guard(ask(), policy), Concurrent(runtime)))
    assert guarded.action == "block"


class Lossy(ScriptedDetector):
    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        return []


def test_cancelled_requests_leave_the_lane() -> None:
    gate = threading.Event()

    def script(request: AnyRequest) -> str:
        gate.wait(5)
        return "fine"

    target = Counting(script)
    policy, runtime = make_world(target=target)

    async def crowd() -> str:
        loop = Concurrent(runtime)
        first = asyncio.ensure_future(drive.arun(guard(ask("first"), policy), loop))
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(drive.arun(guard(ask("second"), policy), loop))
        await asyncio.sleep(0.01)
        second.cancel()
        gate.set()
        return (await first).text

    assert asyncio.run(crowd()) == "fine"
    assert len(target.seen) == 1


def hang(sample: Sample) -> float:
    time.sleep(0.5)
    return 0.0


def test_a_hanging_detector_blocks() -> None:
    detector = ScriptedDetector(hang, name="harm")
    policy, runtime = make_world(detectors=[detector], timeout=0.02)
    guarded = drive.run(guard(ask(), policy), runtime)
    assert guarded.action == "block"
    assert "longer than 0.02 s" in guarded.trail[0].error


def test_a_detector_in_time_is_heard() -> None:
    policy, runtime = make_world(timeout=5)
    assert drive.run(guard(SEEN, policy), runtime).step == "caption"
    broken = ScriptedDetector(lambda s: 1 / 0, name="harm")
    policy, runtime = make_world(detectors=[broken], timeout=5)
    assert "ZeroDivisionError" in drive.run(guard(ask(), policy), runtime).trail[0].error


def test_together_cancels_the_rest() -> None:
    started, finished = list[str](), list[str]()

    class Slow:
        async def generate(self, model: str, request: AnyRequest) -> Reply:
            started.append(model)
            await asyncio.sleep(0 if model == "quick" else 5)
            finished.append(model)
            return Reply(model)

        async def score(self, detector: str, sample: Sample) -> Finding:
            raise NotImplementedError

        def open(self, model: str, request: AnyRequest) -> AsyncGenerator[str | Reply, None]:
            raise NotImplementedError

    def flow() -> Flow[int]:
        asks = (Generate("quick", ask()), Generate("slow", ask()))
        answers = yield from together(asks, lambda i, answer: True)
        return len(answers)

    assert asyncio.run(drive.arun(flow(), Slow())) == 1
    assert (started, finished) == (["quick", "slow"], ["quick"])


def test_failures_in_together_are_values() -> None:
    def flow() -> Flow[list[Any]]:
        asks = (Score("none", Sample(ask())), Generate("target", ask()))
        return (yield from together(asks, lambda i, answer: False))

    _, runtime = make_world()
    for answers in (drive.run(flow(), runtime), drive.run_many([flow()], runtime)[0]):
        assert isinstance(answers, list)
        assert isinstance(answers[0], UnknownName)
        assert isinstance(answers[1], Reply)


class Async(ScriptedModel):
    """A model with an asynchronous side of its own."""

    async def agenerate(self, request: AnyRequest) -> Reply:
        return self.answer(request)

    async def astream(self, request: AnyRequest) -> AsyncGenerator[str | Reply, None]:
        yield "fi"
        yield "ne"
        yield Reply("fine")


def test_async_models_are_awaited() -> None:
    policy, runtime = make_world(target=Async(lambda r: "fine"))

    async def both() -> tuple[str, str]:
        loop = Concurrent(runtime)
        whole = await drive.arun(guard(ask(), policy), loop)
        *_, last = [p async for p in drive.astream(guard(ask(), policy, stream=True), loop)]
        assert isinstance(last, Guarded)
        return whole.text, last.text

    assert asyncio.run(both()) == ("fine", "fine")


def test_connect_refuses_unknown_names() -> None:
    model = ScriptedModel()
    with pytest.raises(UnknownName, match="'helper'"):
        connect(
            make_policy(caption={"model": "helper"}), {"target": model}, {"harm": harm_detector()}
        )
    with pytest.raises(UnknownName, match="detector 'harm'"):
        connect(make_policy(), {"target": model})
    with pytest.raises(UnknownName, match="model 'ghost'"):
        Local({}, {}).generate("ghost", [ask()])


def test_never_an_answer_of_the_wrong_kind() -> None:
    policy, runtime = make_world(target=ScriptedModel(lambda r: BAD))
    runtime.detectors["harm"] = runtime.models["target"]  # type: ignore[assignment]  # on purpose
    assert drive.run(guard(ask(), policy), runtime).action == "block"


def test_a_draft_that_was_read_tells_how_long_it_took() -> None:
    """The demo once told 0 ms for every draft."""

    def slow(request: AnyRequest) -> str:
        time.sleep(0.02)
        return "fine"

    policy = make_policy(stream={"window": 2})
    wrapped = wrap(ScriptedModel(slow), policy=policy, detectors={"harm": harm_detector()})
    for guarded in (wrapped.chat("hi"), asyncio.run(wrapped.achat("hi"))):
        assert guarded.draft is not None
        assert guarded.draft.ms >= 20
