"""Steps that must end in time: by hand, under every driver, and in the trail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from mmguard import drive, guard
from mmguard.asks import Ask, Flow, Generate, Score, Together, bound, generate, together
from mmguard.clock import Work, awithin, within
from mmguard.errors import DeadlineError, LateDetector
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.runtime import Concurrent, Local
from mmguard.types import AnyRequest, Finding, Guarded, Reply, Sample
from tests.chats import adapt, caught, seen
from tests.world import BAD, SEEN, WORDS, ask, harm_detector, make_policy, make_world, words

ONE = Generate("target", ask("one"))
TWO = Score("harm", Sample(ask("two")))


def asks(*wanted: Ask) -> Flow[list[Any]]:
    answers: list[Any] = []
    for one in wanted:
        answers += [(yield one)]
    return answers


def test_what_is_left() -> None:
    flow = bound(asks(ONE, TWO, Together((ONE, TWO)), ONE), 10)
    assert flow.send(None) == Generate("target", ONE.request, 10)
    assert flow.send(Reply("", ms=2000)) == Score("harm", TWO.sample, 8)
    both = flow.send(Finding("harm", 0.0, ms=1000))
    assert isinstance(both, Together)
    assert [one.timeout for one in both.asks] == [7, 7]
    assert flow.send([Reply("", ms=3000), ValueError()]) == Generate("target", ONE.request, 4)


def test_an_own_timeout_may_be_shorter() -> None:
    flow = bound(asks(Generate("target", ask(), 3)), 10)
    assert flow.send(None) == Generate("target", ask(), 3)


def test_no_deadline() -> None:
    flow = bound(asks(ONE, ONE), None)
    assert flow.send(None) == ONE
    assert flow.send(Reply("", ms=1e9)) == ONE


def test_too_late_for_more() -> None:
    flow = bound(asks(ONE, ONE), 1)
    flow.send(None)
    with pytest.raises(DeadlineError, match="longer than 1 s"):
        flow.send(Reply("", ms=1001))


def test_a_step_cannot_outwait_its_deadline() -> None:
    def stubborn() -> Flow[Reply]:
        while True:
            try:
                return (yield from generate("target", ask()))
            except DeadlineError:
                continue

    flow = bound(stubborn(), 5)
    flow.send(None)
    with pytest.raises(DeadlineError):
        flow.throw(DeadlineError())


def test_failures_reach_the_step() -> None:
    def careful() -> Flow[str]:
        try:
            yield from generate("target", ask())
        except ValueError as exc:
            return str(exc)
        return "none"

    flow = bound(careful(), 5)
    flow.send(None)
    with pytest.raises(StopIteration) as stop:
        flow.throw(ValueError("told"))
    assert stop.value.value == "told"


def hangs(event: threading.Event) -> Callable[[AnyRequest], str]:
    """A target that harms, and hangs when it is asked for a rewrite."""

    def script(request: AnyRequest) -> str:
        if "whoever writes the answer" in words(request):
            event.wait(20)
        return "mended" if "anew" in words(request) else BAD

    return script


def everyway(policy: Any, runtime: Any) -> list[Any]:
    """The results of each driver for one request."""

    async def last(loop: Concurrent) -> Any:
        *_, result = [p async for p in drive.astream(guard(ask(), policy, stream=True), loop)]
        return result

    async def alone(loop: Concurrent) -> Any:
        return await drive.arun(guard(ask(), policy), loop)

    return [
        drive.run(guard(ask(), policy), runtime),
        *drive.run_many([guard(ask(), policy) for _ in range(3)], runtime),
        asyncio.run(alone(Concurrent(runtime))),
        asyncio.run(last(Concurrent(runtime))),
    ]


def test_a_hanging_step_falls_to_the_next() -> None:
    event = threading.Event()
    policy = make_policy(repair=["caption", "rewrite", "detoxify"], deadline=0.1)
    editor = ScriptedModel(hangs(event))
    fields = {**policy.model_dump(exclude_unset=True), "rewrite": {"model": "editor"}}
    target = ScriptedModel(hangs(threading.Event()))
    bound_, runtime = make_world(make_policy(**fields), target=target, models={"editor": editor})
    start = time.perf_counter()
    for guarded in everyway(bound_, runtime):
        assert isinstance(guarded, Guarded)
        assert (guarded.text, guarded.step) == ("mended", "detoxify")
        [late] = [f for f in guarded.trail if f.error]
        assert late.stage == "rewrite"
        assert late.error.startswith("DeadlineError: no answer within the 0.1 s")
    assert time.perf_counter() - start < 5
    event.set()


def test_a_hanging_detector_ends_the_step() -> None:
    event = threading.Event()

    def script(sample: Sample) -> float:
        if sample.reply == "Fine.":
            event.wait(20)
        return 0.9 if BAD in (sample.reply or "") else 0.1

    detector = ScriptedDetector(script, name="harm")
    policy, runtime = make_world(
        make_policy(repair=["excise"], deadline=0.1),
        target=ScriptedModel(lambda r: f"Fine. {BAD}."),
        detectors=[detector],
    )
    guarded = drive.run(guard(ask(), policy), runtime)
    event.set()
    assert guarded.action == "block"
    assert "longer than 0.1 s" in guarded.trail[-1].error


def test_in_time() -> None:
    policy, runtime = make_world(make_policy(deadline=30))
    assert drive.run(guard(SEEN, policy), runtime).step == "caption"


class Waiting(ScriptedModel):
    """A model with an asynchronous side that times out by itself."""

    async def agenerate(self, request: AnyRequest) -> Reply:
        if "anew" in words(request):
            raise TimeoutError("the server said so")
        return Reply(BAD)

    async def astream(self, request: AnyRequest) -> Any:
        yield Reply(BAD)


def test_a_timeout_of_the_model_is_its_own() -> None:
    policy, runtime = make_world(make_policy(repair=["detoxify"], deadline=9), target=Waiting())

    async def alone() -> Any:
        return await drive.arun(guard(ask(), policy), Concurrent(runtime))

    guarded = asyncio.run(alone())
    assert guarded.trail[-1].error == "TimeoutError: the server said so"


def test_within() -> None:
    late = DeadlineError("late")
    assert within(None, lambda: 1, late) == within(5, lambda: 1, late) == 1
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0, late)
    with pytest.raises(DeadlineError, match="late"):
        within(0.01, lambda: time.sleep(0.3), late)

    async def slow() -> int:
        await asyncio.sleep(5)
        return 1

    with pytest.raises(DeadlineError, match="late"):
        asyncio.run(awithin(0.01, slow(), late))


def test_all_of_several_are_wanted() -> None:
    def flow() -> Flow[list[Any]]:
        return (yield from together((ONE, TWO, ONE)))

    _, runtime = make_world(detectors=[harm_detector()])

    async def alone() -> Any:
        return await drive.arun(flow(), Concurrent(runtime))

    every = [drive.run(flow(), runtime), drive.run_many([flow()], runtime)[0], asyncio.run(alone())]
    for answers in every:
        assert [type(answer) for answer in answers] == [Reply, Finding, Reply]


def stopped(model: Any, work: Callable[[], Any]) -> int:
    """How many tokens a real model makes of the thousands that are asked for."""
    with caught(model.model) as calls:
        work()
        for thread in threading.enumerate():
            if isinstance(thread, Work):
                thread.join(60)
    return len(calls)


def test_a_model_in_this_process_stops_when_it_is_late() -> None:
    model = adapt()

    def hurry() -> None:
        with pytest.raises(DeadlineError):
            within(0.3, lambda: model.generate([seen(max_tokens=3000)]), DeadlineError())

    assert 0 < stopped(model, hurry) < 3000


def test_a_model_in_this_process_stops_when_its_callers_leave() -> None:
    model = adapt()

    async def leave() -> None:
        runtime = Concurrent(Local({"target": model}, {}))
        asked = [runtime.generate("target", seen(max_tokens=3000)) for _ in range(2)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*asked), 0.5)

    assert 0 < stopped(model, lambda: asyncio.run(leave())) < 3000


def test_a_model_works_on_for_whoever_still_waits() -> None:
    model = adapt()

    async def stay() -> Reply:
        runtime = Concurrent(Local({"target": model}, {}))
        first = asyncio.ensure_future(runtime.generate("target", seen(max_tokens=40)))
        second = asyncio.ensure_future(runtime.generate("target", seen(max_tokens=40)))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(stay()).text == model.generate([seen(max_tokens=40)])[0].text


class Where:
    """A detector that tells in which threads it was asked, and takes its time."""

    name, quick = "where", 4
    thresholds: Mapping[str, float] = WORDS

    def __init__(self, seconds: float = 0) -> None:
        self.seconds, self.threads = seconds, list[threading.Thread]()

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        self.threads.append(threading.current_thread())
        time.sleep(self.seconds)
        return [Finding(self.name, 0.1) for _ in samples]


def rate(detector: Where, *texts: str, timeout: float | None = None) -> list[Any]:
    async def score() -> list[Any]:
        runtime = Concurrent(Local({}, {"where": detector}, timeout=timeout))
        samples = [Sample(ask(), text) for text in texts]
        asked = (runtime.score("where", sample) for sample in samples)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(score())


def test_what_is_quick_is_done_where_it_stands() -> None:
    detector = Where()
    found = rate(detector, "abcd", "", "abcde", timeout=5)
    assert [finding.score for finding in found] == [0.1] * 3
    here = threading.current_thread()
    assert [thread is here for thread in detector.threads] == [True, True, False]


def test_a_late_detector_holds_up_neither_the_loop_nor_the_next() -> None:
    detector, start = Where(0.5), time.monotonic()
    first, second = rate(detector, "abcde", "fghij", timeout=0.05)
    assert isinstance(first, LateDetector)
    assert isinstance(second, LateDetector)
    assert time.monotonic() - start < 0.45
