"""What goes wrong behind, before and inside the sidecar: a status, no leak, nothing left behind.

Sockets are real: the upstream misbehaves on loopback, and callers hang up.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from mmguard.types import Finding, Sample
from tests.fault_rows import AZURE, DONE, FINE, HARM, ROWS, says, speaks
from tests.faulty import Peer, Script, Upstream, faulty
from tests.loopback import served
from tests.upstream import chunk, completion, detector, streamed, write_policy
from tests.world import BAD, WORDS

Json = dict[str, Any]


async def play(peer: Peer) -> None:
    """The row that the caller names as its model."""
    name = peer.body["model"]
    await (ROWS[name].script if name in ROWS else SCENES[name])(peer)


@dataclass
class Place:
    """A sidecar before a faulty upstream, and what it holds."""

    url: str
    upstream: Upstream
    client: httpx.Client

    def ask(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
        return self.client.post(f"{self.url}/chat/completions", json=body)

    def held(self) -> tuple[int, int]:
        """Tasks and requests in flight."""
        tasks, flying = self.client.get(f"{self.url}/held").json()
        return tasks, flying

    def settles(self, base: tuple[int, int]) -> bool:
        """Whether nothing more is held than before, soon."""
        return soon(lambda: self.held() == base)

    @property
    def peer(self) -> Peer:
        return self.upstream.peers[-1]


def soon(found: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found():
            return True
        time.sleep(0.02)
    return False


def watched(app: FastAPI) -> FastAPI:
    """The application with a route that tells what it holds."""

    @app.get("/v1/held")
    async def held() -> list[int]:
        return [len(asyncio.all_tasks()), app.state.sidecar.flying]

    return app


@contextmanager
def placed(policy: Path, script: Script = play, **known: Any) -> Iterator[Place]:
    detectors = {"harm": detector(), **known.pop("detectors", {})}
    with faulty(script) as upstream:
        settings = Settings(upstream=upstream.url, policy=str(policy), **known)
        app = watched(make_app(settings, detectors))
        with served(app) as url, httpx.Client(timeout=20) as client:
            yield Place(url, upstream, client)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    policy = write_policy(tmp_path_factory.mktemp("policy"))
    with placed(policy, timeout=1, heartbeat=0.4, body_mib=4) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ROWS)
def test_faults_of_the_upstream(name: str, stream: bool, place: Place) -> None:
    row, base = ROWS[name], place.held()
    status = row.stream if stream else row.whole
    if status is None:
        return
    answer = place.ask(name, stream=stream)
    assert answer.status_code == status, answer.text[:300]
    assert row.told in answer.text
    assert BAD not in answer.text
    if not answer.text.startswith(("data:", ":")):
        assert "error" in answer.json() or "choices" in answer.json()
    elif status == 200:
        assert answer.content.endswith(DONE)
    assert place.settles(base)


SAME = {"azure": AZURE, "two ends": streamed(FINE), "a huge chunk": None}


@pytest.mark.parametrize("name", ["azure", "two ends"])
def test_odd_streams_that_pass_are_byte_for_byte_the_upstreams(name: str, place: Place) -> None:
    assert place.ask(name, stream=True).content == SAME[name]


# -- the caller's faults --------------------------------------------------------


async def waits(peer: Peer) -> None:
    await peer.wait()


async def waits_within(peer: Peer) -> None:
    await peer.head()
    await peer.piece(streamed([{"content": "all is fine here "}] * 40)[:-100])
    await peer.wait()


async def floods(peer: Peer) -> None:
    await peer.head()
    for _ in range(60):
        await peer.piece(chunk(0, {"content": "fine " * 20_000}))
    await peer.wait()


SCENES = {"waits": waits, "waits within": waits_within, "floods": floods}


class Caller:
    """A caller on a bare socket, which may leave whenever it likes."""

    def __init__(
        self, url: str, body: bytes, size: int | None = None, path: str = "chat/completions"
    ) -> None:
        host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: {host}\r\n"
        head += f"content-length: {len(body) if size is None else size}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def leave(self, hard: bool = False) -> None:
        if hard:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def asks(model: str, **more: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    return json.dumps(body).encode()


WINDOW: Json = {"mode": "window", "window": 20, "hold": 5}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A sidecar that would wait for its upstream much longer than a test does."""
    policy = write_policy(tmp_path_factory.mktemp("policy"), stream=WINDOW)
    with placed(policy, timeout=60, heartbeat=0.3) as made:
        yield made


GONE = {
    "whole": ("waits", False, 0.1),
    "before the first byte": ("waits", True, 0.1),
    "after a heartbeat": ("waits", True, 0.6),
    "in the middle": ("waits within", True, 0.2),
    "without reading": ("floods", True, 0.5),
}


@pytest.mark.parametrize("hard", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("name", GONE)
def test_a_caller_that_leaves_takes_its_upstream_call_along(
    name: str, hard: bool, patient: Place
) -> None:
    scene, stream, seconds = GONE[name]
    base, calls = patient.held(), len(patient.upstream.peers)
    caller = Caller(patient.url, asks(scene, stream=stream))
    assert soon(lambda: len(patient.upstream.peers) > calls)
    time.sleep(seconds)
    caller.leave(hard)
    assert patient.peer.left.wait(3)
    assert patient.settles(base)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_a_response_ends_it(stream: bool, patient: Place) -> None:
    base, calls = patient.held(), len(patient.upstream.peers)
    body = asks("waits", stream=stream, input="hello")
    caller = Caller(patient.url, body, path="responses")
    assert soon(lambda: len(patient.upstream.peers) > calls)
    caller.leave()
    assert patient.peer.left.wait(3)
    assert patient.settles(base)


def test_no_call_that_ends_as_it_begins_keeps_its_connection(patient: Place) -> None:
    base = patient.held()
    for i in range(100):
        caller = Caller(patient.url, asks("waits", stream=bool(i % 4)))
        time.sleep(0.0002 * (i % 40))
        caller.leave(hard=True)
    assert patient.settles(base)
    assert soon(lambda: patient.upstream.open == 0)


def test_a_stream_gives_its_connection_to_the_next(tmp_path: Path) -> None:
    with placed(write_policy(tmp_path), speaks(streamed(FINE))) as made:
        for _ in range(3):
            assert made.ask("any", stream=True).status_code == 200
        assert made.upstream.open == 1
        assert len({peer.writer for peer in made.upstream.peers}) == 1


def test_a_caller_that_leaves_within_its_body(patient: Place, caplog: Any) -> None:
    base, calls = patient.held(), len(patient.upstream.peers)
    caller = Caller(patient.url, asks("waits"), size=10_000)
    time.sleep(0.1)
    caller.leave()
    assert patient.settles(base)
    assert len(patient.upstream.peers) == calls
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("told", [True, False], ids=["told", "chunked"])
def test_a_body_too_large_is_refused_before_it_is_read(told: bool, place: Place) -> None:
    pieces = (b" " * 65536 for _ in range(200))
    base, url = place.held(), f"{place.url}/chat/completions"
    content: Any = b" " * (12 * 2**20) if told else pieces
    answer = httpx.post(url, content=content, timeout=20)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert place.settles(base)


def test_more_requests_are_in_flight_than_httpx_has_connections(tmp_path: Path) -> None:
    with placed(write_policy(tmp_path), play, timeout=60) as made:
        callers = [Caller(made.url, asks("waits")) for _ in range(120)]
        assert soon(lambda: len(made.upstream.peers) == 120, 10)
        for caller in callers:
            caller.leave()
        assert soon(lambda: made.held()[1] == 0)


# -- the guard's faults ---------------------------------------------------------


class Odd:
    """A detector that does what it likes."""

    thresholds: Mapping[str, float] = WORDS

    def __init__(self, name: str, work: Callable[[Sequence[Sample]], Any]) -> None:
        self.name, self.work = name, work

    def score(self, samples: Sequence[Sample]) -> Any:
        return self.work(samples)


class Panic(BaseException):
    """What a Rust extension raises when it panics is no `Exception` either."""


def raises(error: BaseException) -> Callable[[Any], Any]:
    def work(samples: Any) -> Any:
        raise error

    return work


def finds(**fields: Any) -> Callable[[Any], Any]:
    values: Json = {"detector": "odd", "score": 0.1, **fields}
    return lambda samples: [Finding(**values) for _ in samples]


GATE = threading.Event()
ODD: Mapping[str, Callable[[Any], Any]] = {
    "raises": raises(RuntimeError("boom")),
    "panics": raises(Panic()),
    "exits": raises(SystemExit(3)),
    "hangs": lambda samples: GATE.wait(5),
    "nothing": lambda samples: None,
    "no rows": lambda samples: [],
    "too many rows": lambda samples: [Finding("odd", 0.0)] * (len(samples) + 1),
    "no findings": lambda samples: [0.1 for _ in samples],
    "score of text": finds(score="0.1"),
    "score of nan": finds(score=float("nan")),
    "score too large": finds(score=7),
    "category of nan": finds(categories={"hate": float("nan")}),
    "category of text": finds(categories={"hate": "0.1"}),
    "category of none": finds(categories={"hate": None}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ODD)
def test_faults_of_a_detector(name: str, stream: bool, tmp_path: Path) -> None:
    rule = {"strictness": 0.5, "action": "block"}
    check = {"detector": "odd", "action": "block", "categories": {"hate": rule}}
    policy = write_policy(tmp_path, output=[check])
    odd = {"odd": Odd("odd", ODD[name])}
    script = speaks(streamed(HARM), whole=completion({"content": BAD}))
    with placed(policy, script, detectors=odd, detector_timeout=0.2) as made:
        base = made.held()
        answer = made.ask("any", stream=stream)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "5")
        assert answer.json()["error"]["type"] == "guard_unavailable"
        assert BAD not in answer.text
        assert made.settles(base)


def test_callers_of_a_detector_that_hangs_wait_together(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "odd", "action": "block"}])
    odd = {"odd": Odd("odd", ODD["hangs"])}
    script = says(completion({"content": BAD}))
    with placed(policy, script, detectors=odd, detector_timeout=0.4) as made:
        start = time.monotonic()
        callers = [Caller(made.url, asks("any")) for _ in range(10)]
        answers = [caller.socket.recv(65536) for caller in callers]
        assert time.monotonic() - start < 2
        assert all(b" 503 " in answer for answer in answers)
        for caller in callers:
            caller.leave()


def test_one_choice_that_fails_leaves_no_other_at_work(tmp_path: Path) -> None:
    """Choice 1 is missing; choice 0 waits for its detector."""
    policy = write_policy(tmp_path, output=[{"detector": "odd", "action": "block"}])
    odd = {"odd": Odd("odd", lambda samples: GATE.wait(5))}
    script = says(completion({"content": "fine"}))
    with placed(policy, script, detectors=odd) as made:
        base = made.held()
        assert made.ask("any", n=2).status_code == 502
        # The lane itself waits for the thread.
        assert soon(lambda: made.held()[0] <= base[0] + 1)


def test_names_that_no_header_can_hold(tmp_path: Path) -> None:
    def script(sample: Sample) -> Finding:
        return Finding("harm", 0.9, categories={"仇恨\n": 0.9})

    policy = write_policy(tmp_path, name="政策")
    odd = {"harm": ScriptedDetector(script, name="harm", thresholds=WORDS)}
    frames = speaks(streamed(HARM), whole=completion({"content": BAD}))
    with placed(policy, frames, detectors=odd) as made:
        answer = made.ask("any")
        assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
        assert answer.headers["x-mmguard-categories"].isascii()
        assert b"content_filter" in made.ask("any", stream=True).content
