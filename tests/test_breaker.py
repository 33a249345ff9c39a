"""Parts that keep failing are not asked for a while, and then tried again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, strategies as st

from mmguard.errors import DetectorError, ModelError
from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.breaker import Breaker, Breaking
from mmguard.server.settings import Settings
from mmguard.types import Finding, Sample
from tests.test_metrics import read
from tests.upstream import completion, streamed, write_policy
from tests.world import BAD, WORDS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


RULE = Breaking(failures=3, seconds=10)


def made() -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker("detector", "d", RULE, clock), clock


def fail(breaker: Breaker, error: type[Exception] = RuntimeError) -> None:
    with pytest.raises(error), breaker.asked():
        raise error("boom")


def work(breaker: Breaker) -> None:
    with breaker.asked():
        pass


def state(breaker: Breaker) -> str:
    return breaker.state


def test_failures_in_a_row_open_it_and_a_trial_closes_it() -> None:
    breaker, clock = made()
    fail(breaker)
    fail(breaker)
    work(breaker)
    for _ in range(3):
        assert state(breaker) == "closed"
        fail(breaker)
    assert state(breaker) == "open"
    with pytest.raises(DetectorError, match="'d' failed 3 times in a row"):
        work(breaker)
    clock.now = 9.9
    assert state(breaker) == "open"
    clock.now = 10
    assert state(breaker) == "trial"
    work(breaker)
    assert (state(breaker), breaker.opened) == ("closed", 1)
    fail(breaker)
    assert state(breaker) == "closed"


def test_a_trial_that_fails_opens_it_at_once() -> None:
    breaker, clock = made()
    for _ in range(3):
        fail(breaker)
    clock.now = 10
    fail(breaker)
    assert (state(breaker), breaker.opened) == ("open", 2)
    clock.now = 19.9
    assert state(breaker) == "open"
    clock.now = 20
    assert state(breaker) == "trial"


def test_one_trial_at_a_time_and_one_that_is_left_makes_room_for_another() -> None:
    breaker, clock = made()
    for _ in range(3):
        fail(breaker)
    clock.now = 10
    assert breaker.admit()
    with pytest.raises(DetectorError):
        breaker.admit()
    breaker.leave(True)
    fail(breaker, asyncio.CancelledError)  # type: ignore[arg-type]  # whoever leaves
    assert state(breaker) == "trial"
    work(breaker)
    assert state(breaker) == "closed"


def test_what_began_before_it_opened_does_not_prolong_it() -> None:
    breaker, clock = made()
    for _ in range(3):
        fail(breaker)
    clock.now = 9
    breaker.fail()
    clock.now = 10
    assert state(breaker) == "trial"


def test_what_a_server_refuses_is_no_failure_of_it() -> None:
    breaker, _ = made()
    for refusal in (400, 401, 429) * 3:
        with pytest.raises(ModelError), breaker.asked():
            raise ModelError("no", status=refusal)
    assert state(breaker) == "closed"
    last: list[int | None] = [500, 503, None]
    for status in last:
        with pytest.raises(ModelError), breaker.asked():
            raise ModelError("no", status=status)
    assert state(breaker) == "open"


@given(st.lists(st.sampled_from(["work", "fail", "leave", "wait"]), max_size=40))
def test_whatever_happens_a_part_that_works_again_is_asked_again(steps: list[str]) -> None:
    breaker, clock = made()
    acts: dict[str, Callable[[bool], None]] = {
        "work": lambda trial: breaker.succeed(),
        "fail": lambda trial: breaker.fail(),
        "leave": breaker.leave,
    }
    for step in steps:
        clock.now += 11 if step == "wait" else 1
        if step != "wait":
            try:
                trial = breaker.admit()
            except DetectorError:
                assert breaker.since is not None
                continue
            acts[step](trial)
    clock.now += 11
    work(breaker)
    assert state(breaker) == "closed"


# -- in the sidecar -------------------------------------------------------------


class Place:
    """A sidecar whose detector and upstream can be broken."""

    def __init__(self, folder: Path, failures: int = 3, **policy: Any) -> None:
        self.scored = self.repairs = 0
        self.broken: Exception | float | None = None
        self.down, self.slow = 0, 0.0
        harm = ScriptedDetector(self.score, name="harm", thresholds=WORDS)
        breaker = {"failures": failures, "seconds": 10}
        path = str(write_policy(folder, **policy))
        settings = {"upstream": "http://up/v1", "policy": path, "breaker": breaker}
        transport = httpx.MockTransport(self.answer)
        known = Settings.model_validate(settings)
        self.app = make_app(known, {"harm": harm}, atransport=transport)
        self.clock = self.app.state.sidecar.breakers.clock = Clock()

    def score(self, sample: Sample) -> float | Finding:
        self.scored += 1
        time.sleep(self.slow)
        if isinstance(self.broken, Exception):
            raise self.broken
        if self.broken is not None:
            return Finding("harm", self.broken)
        return 0.9 if BAD in (sample.reply or "") else 0.1

    def answer(self, request: httpx.Request) -> httpx.Response:
        body, text = json.loads(request.content), f"{BAD} words"
        if "anew" in str(body["messages"]):
            self.repairs += 1
            text = "a mended answer"
            if self.down:
                return httpx.Response(self.down, json={"error": {"message": "down"}})
        if body.get("stream"):
            return httpx.Response(200, content=streamed([{"content": text}]))
        return httpx.Response(200, json=completion({"content": text}))

    def send(self, stream: bool = False) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
        return self.call("POST", "/v1/chat/completions", json=body)

    def get(self, path: str) -> httpx.Response:
        return self.call("GET", path)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.crowd(1, method, path, **more)[0]

    def crowd(self, size: int, method: str, path: str, **more: Any) -> list[httpx.Response]:
        """So many calls at once."""

        async def play() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
                calls = [caller.request(method, path, **more) for _ in range(size)]
                return await asyncio.gather(*calls)

        return asyncio.run(play())


def test_a_detector_that_keeps_failing_is_not_asked(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.broken = RuntimeError("boom")
    assert [place.send().status_code for _ in range(5)] == [503] * 5
    assert place.scored == 3
    ready = place.get("/readyz")
    assert (ready.status_code, ready.json()["open"]) == (503, ["harm"])
    assert ready.headers["retry-after"] == "10"
    assert place.get("/healthz").status_code == 200
    text = place.get("/metrics").text
    assert read(text, "breaker_state", "part", "name") == {("detector", "harm"): 2}
    assert read(text, "breaker_opened_total", "part", "name") == {("detector", "harm"): 1}
    place.broken, place.clock.now = None, 10
    assert place.get("/readyz").status_code == 200
    assert place.send().status_code == 200
    assert place.get("/readyz").json()["open"] == []
    assert read(place.get("/metrics").text, "breaker_state", "name") == {}


def test_those_who_wait_while_it_is_given_up_are_told_at_once(tmp_path: Path) -> None:
    place = Place(tmp_path, failures=1)
    place.broken = RuntimeError("boom")
    place.slow = 0.1
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    answers = place.crowd(5, "POST", "/v1/chat/completions", json=body)
    assert [answer.status_code for answer in answers] == [503] * 5
    assert place.scored == 1


def test_the_policy_says_what_its_failure_means(tmp_path: Path) -> None:
    checks = [{"detector": "harm", "action": "block", "on_error": "pass"}]
    place = Place(tmp_path, output=checks)
    place.broken = RuntimeError("boom")
    answers = [place.send() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert place.scored == 3


@pytest.mark.parametrize("score", [float("nan"), 7.0, -1.0])
def test_nonsense_is_a_failure(score: float, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.broken = score
    for _ in range(5):
        place.send()
    assert place.scored == 3


def test_one_bad_row_among_good_ones_is_no_reason(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for _ in range(4):
        place.broken = RuntimeError("boom")
        for _ in range(2):
            place.send()
        place.broken = None
        assert place.send().status_code == 200
    assert place.get("/readyz").json()["open"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_of_repairs_that_is_down_is_not_asked(stream: bool, tmp_path: Path) -> None:
    place = Place(tmp_path, repair=["detoxify"])
    place.down = 500
    for _ in range(5):
        answer = place.send(stream)
        assert answer.status_code == 200
        assert BAD not in answer.text
        assert "content_filter" in answer.text
    assert place.repairs == 3
    assert read(place.get("/metrics").text, "breaker_state", "part", "name") == {
        ("model", "target"): 2
    }
    # Repairs are no reason to send nobody here.
    assert place.get("/readyz").status_code == 200
    place.down, place.clock.now = 0, 10
    assert "mended" in place.send(stream).text
    assert "mended" in place.send(stream).text


def test_refused_repairs_are_asked_again(tmp_path: Path) -> None:
    place = Place(tmp_path, repair=["detoxify"])
    place.down = 429
    for _ in range(5):
        place.send()
    assert place.repairs == 5


def test_errors_of_the_upstream_itself_pass(tmp_path: Path) -> None:
    place = Place(tmp_path)
    transport = httpx.MockTransport(lambda request: httpx.Response(500, json={}))
    broken = httpx.AsyncClient(transport=transport, base_url="http://up/v1")
    place.app.state.sidecar.upstream.aclient = broken
    assert [place.send().status_code for _ in range(6)] == [500] * 6
    assert place.get("/readyz").status_code == 200
