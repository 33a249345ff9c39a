"""Seen from outside: counts equal what was sent, however it ended, and say nobody's words."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings as hypothesis, strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mmguard.server import store
from mmguard.server.metrics import Metrics
from mmguard.server.visit import Visit
from mmguard.server.watch import Door
from mmguard.types import Call, Finding, Guarded, Reply, Usage
from tests.loopback import served
from tests.upstream import Cuts, Json, app, completion, streamed, write_policy
from tests.world import BAD, png

CHAT = "/v1/chat/completions"
FINE, HARM = ({"content": "fine"},), ({"content": "a "}, {"content": BAD})


def upstream(request: httpx.Request) -> httpx.Response:
    """Does what the request's `act` says."""
    body = json.loads(request.content)
    act, n = body.get("act", "pass"), body.get("n", 1)
    if act == "limit":
        return httpx.Response(429, json={"error": {"message": "slow down"}})
    talk = HARM if act == "block" else FINE
    if act == "mend":
        talk = FINE if "anew" in json.dumps(body["messages"]) else HARM
    if not body.get("stream"):
        said = {"content": "".join(piece["content"] for piece in talk)}
        return httpx.Response(200, json={} if act == "break" else completion(*[said] * n))
    data = streamed(*[talk] * n, usage=act != "break")
    return httpx.Response(200, stream=Cuts([data[:-40] if act == "break" else data]))


@asynccontextmanager
async def calling(sidecar: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(sidecar)
    async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
        yield caller


def send(sidecar: FastAPI, *bodies: Json, **headers: str) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with calling(sidecar) as caller:
            return [await caller.post(CHAT, json=asked(body), headers=headers) for body in bodies]

    return asyncio.run(run())


def asked(body: Json) -> Json:
    return {"model": "up", "messages": [{"role": "user", "content": "what is this?"}], **body}


Found = Mapping[tuple[str, ...], float]


def scrape(sidecar: FastAPI) -> str:
    async def run() -> str:
        async with calling(sidecar) as caller:
            answer = await caller.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain")
            return answer.text

    return asyncio.run(run())


def read(text: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of this name by these labels, summed over all others."""
    found: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"mmguard_{name}":
                found[tuple(sample.labels[label] for label in labels)] += sample.value
    return {key: value for key, value in found.items() if value}


# What is sent, the decision and the status that it must count under.
SENT: dict[str, tuple[Json, str, str]] = {
    "pass": ({}, "pass", "200"),
    "block": ({"act": "block"}, "block", "200"),
    "stream": ({"stream": True}, "pass", "200"),
    "blocked stream": ({"act": "block", "stream": True}, "block", "200"),
    "choices": ({"n": 3}, "pass", "200"),
    "broken": ({"act": "break"}, "failed", "502"),
    "broken stream": ({"act": "break", "stream": True}, "failed", "502"),
    "limit": ({"act": "limit"}, "refused", "429"),
    "limited stream": ({"act": "limit", "stream": True}, "refused", "429"),
    "bad": ({"n": 0}, "refused", "400"),
}


@hypothesis(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(sorted(SENT)), max_size=12))
def test_counts_equal_what_was_sent(tmp_path: Path, names: list[str]) -> None:
    sidecar = app(upstream, write_policy(tmp_path))
    answers = send(sidecar, *(SENT[name][0] for name in names))
    assert [str(answer.status_code) for answer in answers] == [SENT[name][2] for name in names]
    text = scrape(sidecar)
    wanted = Counter(SENT[name][1:] for name in names)
    assert read(text, "requests_total", "decision", "status") == wanted
    streams = [name for name in names if "stream" in name and SENT[name][2] == "200"]
    assert sum(read(text, "first_byte_seconds_count").values()) == len(streams)
    assert sum(read(text, "request_seconds_count").values()) == len(names)
    done = [SENT[name][0] for name in names if SENT[name][2] == "200"]
    assert sum(read(text, "choices_total").values()) == sum(body.get("n", 1) for body in done)
    assert read(text, "model_calls_total", "stage").get(("draft",), 0) == len(done)
    tokens = read(text, "model_tokens_total", "kind")
    assert tokens.get(("prompt",), 0) == 7 * len(done)
    assert read(text, "in_flight") == {}


def test_routes_and_policies(tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path), keys={"team": {"key": "team-key-1"}})
    send(sidecar, {}, authorization="Bearer team-key-1")
    send(sidecar, {}, authorization="Bearer wrong-key")

    async def wander() -> None:
        async with calling(sidecar) as caller:
            for i in range(5):
                await caller.get(f"/v1/{i}")
            await caller.get("/healthz")

    asyncio.run(wander())
    (tag,) = {policy.tag for policy in sidecar.state.sidecar.policies.values()}
    assert read(scrape(sidecar), "requests_total", "route", "policy", "status") == {
        (CHAT, tag, "200"): 1,
        (CHAT, "none", "401"): 1,
        ("other", "none", "404"): 5,
    }


def test_repairs_pictures_and_tokens(tmp_path: Path) -> None:
    import base64

    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    body = {"act": "mend", "messages": [{"role": "user", "content": parts}]}
    sidecar = app(upstream, write_policy(tmp_path, repair=["detoxify"]))
    assert [answer.status_code for answer in send(sidecar, body, {**body, "stream": True})] == [
        200,
        200,
    ]
    text = scrape(sidecar)
    assert read(text, "requests_total", "decision") == {("repair",): 2}
    assert read(text, "choices_total", "action", "decision", "step") == {
        ("repair", "repair", "detoxify"): 2
    }
    assert read(text, "pictures_total") == {(): 2}
    assert read(text, "pictures_seen_total") == {}
    calls = {("draft",): 2, ("detoxify",): 2}
    assert read(text, "model_calls_total", "stage") == calls
    assert read(text, "model_tokens_total", "stage", "kind") == {
        (stage, kind): count
        for stage in ("draft", "detoxify")
        for kind, count in (("prompt", 14), ("completion", 10))
    }
    assert read(text, "findings_total", "category", "action") == {("none", "repair"): 2}


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_detector_counts_by_name(stream: bool, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "broken", "action": "block"}])
    sidecar = app(upstream, policy, audit=str(tmp_path / "a.db"))
    assert send(sidecar, {"stream": stream})[0].status_code == 503
    sidecar.state.sidecar.watch.close()
    text = scrape(sidecar)
    assert read(text, "detector_errors_total", "detector") == {("broken",): 1}
    assert read(text, "requests_total", "decision", "status") == {("failed", "503"): 1}
    assert read(text, "guard_seconds_count") == read(text, "audit_rows_total") == {(): 1}


def test_a_failing_step_is_no_detector() -> None:
    metrics = Metrics()
    for finding in (
        Finding("caption", 1.0, "error", error="x", stage="caption"),
        Finding("harm", 0.9, categories={"hate": 0.9, "x": 0.1}, action="block"),
        Finding("harm", 0.9, categories={"what somebody said": 0.9}, action="repair"),
        Finding("harm", 0.1, categories={"hate": 0.1}),
    ):
        metrics.find(finding)
    text = metrics.text().decode()
    assert read(text, "step_failures_total", "step") == {("caption",): 1}
    assert read(text, "detector_errors_total") == {}
    assert read(text, "findings_total", "category") == {("hate",): 1, ("other",): 1}


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": "many"}, {"prompt_tokens": -3}, {"prompt_tokens": 10**400}, "x"],
)
def test_a_servers_nonsense_about_usage_counts_nothing(usage: Any) -> None:
    metrics = Metrics()
    call = Call("rewrite", "target", Reply("x", usage=Usage(10**400, 3)))
    guarded = Guarded("x", "pass", "answer", calls=(Call("draft", "target", Reply("x")), call))
    metrics.answer(Visit(), [guarded], usage)
    tokens = read(metrics.text().decode(), "model_tokens_total", "stage", "kind")
    assert tokens == {("rewrite", "completion"): 3}


# -- those who leave, and those who wait --------------------------------------------


class Endless(httpx.AsyncByteStream):
    """A stream that says a word, and no more until it is left."""

    def __init__(self) -> None:
        self.left = threading.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for frame in streamed([{"content": "fine "}] * 9).split(b"\n\n")[:10]:
                yield frame + b"\n\n"
            await asyncio.sleep(30)
        finally:
            self.left.set()


def test_a_caller_that_leaves_counts_as_gone(tmp_path: Path) -> None:
    endless = Endless()
    window = {"mode": "window", "window": 6, "hold": 3}
    policy = write_policy(tmp_path, stream=window)
    known = {"audit": str(tmp_path / "a.db")}
    sidecar = app(lambda request: httpx.Response(200, stream=endless), policy, **known)
    with served(sidecar) as url:
        body = asked({"stream": True})
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=10) as answer:
            pieces = answer.iter_bytes()
            while b"fine" not in next(pieces):
                pass
            text = httpx.get(f"{url[:-3]}/metrics").text
            assert read(text, "in_flight") == {(): 1}
            assert read(text, "requests_total") == {}
        assert endless.left.wait(10)
        end = time.monotonic() + 10
        while not (
            found := read(
                httpx.get(f"{url[:-3]}/metrics").text, "requests_total", "decision", "status"
            )
        ):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert found == {("gone", "200"): 1}
        assert read(httpx.get(f"{url[:-3]}/metrics").text, "in_flight") == {}
    (row,) = store.read(tmp_path / "a.db")
    assert (row["action"], row["step"]) == ("pass", "unfinished")
    assert row["detail"]["answer"]["chars"] == 39


def test_what_is_sent_after_a_caller_has_left_is_not_an_answer(tmp_path: Path) -> None:
    async def answers(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    async def receive() -> Json:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    sidecar = app(upstream, write_policy(tmp_path))
    scope = {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}
    asyncio.run(Door(answers, sidecar.state.sidecar.watch)(scope, receive, send))
    assert read(scrape(sidecar), "requests_total", "decision") == {("gone",): 1}


def test_a_heartbeat_is_no_first_byte(tmp_path: Path) -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.3)
        return upstream(request)

    sidecar = app(slow, write_policy(tmp_path), heartbeat=0.05)
    (answer,) = send(sidecar, {"stream": True})
    assert b": still here" in answer.content
    text = scrape(sidecar)
    assert read(text, "first_byte_seconds_sum")[()] >= 0.3
    assert read(text, "first_byte_seconds_count") == {(): 1}


def test_a_stream_that_breaks_after_it_began_has_failed(tmp_path: Path) -> None:
    data = streamed([{"content": "It is "}, {"content": "a red square."}])[:-120]
    policy = write_policy(tmp_path, stream={"mode": "window", "window": 4, "hold": 2})
    sidecar = app(lambda request: httpx.Response(200, stream=Cuts([data])), policy)
    (answer,) = send(sidecar, {"stream": True})
    assert b"upstream_error" in answer.content
    text = scrape(sidecar)
    assert read(text, "requests_total", "decision", "status") == {("failed", "200"): 1}


def test_those_in_flight_and_those_refused(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        await gate.wait()
        return upstream(request)

    sidecar = app(slow, write_policy(tmp_path), in_flight=2, queue=0)

    async def run() -> None:
        async with calling(sidecar) as caller:
            calls = [asyncio.ensure_future(caller.post(CHAT, json=asked({}))) for _ in range(4)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            text = (await caller.get("/metrics")).text
            assert read(text, "in_flight") == read(text, "in_flight_limit") == {(): 2}
            gate.set()
            await asyncio.gather(*calls)

    asyncio.run(run())
    found = read(scrape(sidecar), "requests_total", "decision", "status")
    assert found == {("pass", "200"): 2, ("refused", "429"): 2}
