"""More requests than there is room for, bodies that do not come, and an upstream that is full."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmguard.server.failures import Refused
from mmguard.server.gate import Gate
from tests.faulty import Peer
from tests.test_faults import Caller, asks, placed, soon
from tests.upstream import app, client, completion, write_policy

ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
FINE = json.dumps(completion({"content": "fine"})).encode()


async def waits(peer: Peer) -> None:
    await peer.wait()


# -- the gate -------------------------------------------------------------------


async def hold(gate: Gate, order: list[int], number: int, over: asyncio.Event) -> None:
    async with gate.room():
        order.append(number)
        await over.wait()


def test_who_waits_longest_is_next() -> None:
    async def play() -> list[int]:
        gate, order, over = Gate(1, 3, 5), list[int](), asyncio.Event()
        tasks = [asyncio.ensure_future(hold(gate, order, i, over)) for i in range(4)]
        await asyncio.sleep(0)
        assert (gate.flying, gate.waiting) == (1, 3)
        with pytest.raises(Refused, match="too many"):
            await hold(gate, order, 9, over)
        tasks[1].cancel()
        await asyncio.sleep(0)
        over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (gate.flying, gate.waiting) == (0, 0)
        return order

    assert asyncio.run(play()) == [0, 2, 3]


def test_nobody_waits_longer_than_the_limit() -> None:
    async def play() -> None:
        gate, over = Gate(1, 3, 0.05), asyncio.Event()
        first = asyncio.ensure_future(hold(gate, [], 0, over))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match=r"no room within 0\.05 s") as caught:
            await hold(gate, [], 1, over)
        assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "1"})
        assert gate.waiting == 0
        over.set()
        await first

    asyncio.run(play())


# -- before the body ------------------------------------------------------------


def unread(path: str, policy: Path, held: int, **settings: Any) -> httpx.Response:
    """The answer to a body that must not be read, with so many requests in flight."""
    sidecar = app(lambda request: httpx.Response(200, content=FINE), policy, **settings)
    read: list[bool] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"{}"

    async def play() -> httpx.Response:
        gate = sidecar.state.sidecar.gate
        over = asyncio.Event()
        tasks = [asyncio.ensure_future(hold(gate, [], i, over)) for i in range(held)]
        await asyncio.sleep(0)
        transport = httpx.ASGITransport(sidecar)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            answer = await caller.post(path, content=body())
        over.set()
        await asyncio.gather(*tasks)
        assert not read
        return answer

    return asyncio.run(play())


PATHS = {
    "/v1/chat/completions": lambda body: body["error"]["code"] == "overloaded",
    "/v1/completions": lambda body: body["error"]["code"] == "overloaded",
    "/v1/messages": lambda body: body["error"]["type"] == "rate_limit_error",
    "/v1/moderations": lambda body: body["error"]["code"] == "overloaded",
    "/beta/litellm_basic_guardrail_api": lambda body: body["error"]["code"] == "overloaded",
    "/api/v1/text/contents": lambda body: body["code"] == 429,
}


@pytest.mark.parametrize("path", PATHS)
def test_a_full_house_reads_no_body(path: str, tmp_path: Path) -> None:
    answer = unread(path, write_policy(tmp_path), 1, in_flight=1, queue=0)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert PATHS[path](answer.json())


@pytest.mark.parametrize("path", PATHS)
def test_whoever_has_no_key_is_not_heard(path: str, tmp_path: Path) -> None:
    keys = {"team": {"key": "a-long-secret"}}
    answer = unread(path, write_policy(tmp_path), 1, in_flight=1, keys=keys)
    assert answer.status_code == 401


def test_those_who_wait_are_answered(tmp_path: Path) -> None:
    async def upstream(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        return httpx.Response(200, content=FINE)

    async def play() -> list[int]:
        async with client(upstream, write_policy(tmp_path), in_flight=2) as caller:
            calls = [caller.post("chat/completions", json=ASK) for _ in range(12)]
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert asyncio.run(play()) == [200] * 12


def test_one_who_leaves_the_queue_takes_no_place(tmp_path: Path) -> None:
    with placed(write_policy(tmp_path), waits, in_flight=1, timeout=60) as made:
        first = Caller(made.url, asks("any"))
        assert soon(lambda: len(made.upstream.peers) == 1)
        others = [Caller(made.url, asks("any")) for _ in range(5)]
        for caller in (*others, first):
            caller.leave()
        last = Caller(made.url, asks("last"))
        assert soon(lambda: made.upstream.peers[-1].body["model"] == "last")
        last.leave()
        assert soon(lambda: made.held()[1] == 0)


# -- slow bodies ----------------------------------------------------------------


def test_a_body_that_stalls_is_given_up(tmp_path: Path) -> None:
    with placed(write_policy(tmp_path), waits, upload_timeout=0.3) as made:
        base = made.held()
        caller = Caller(made.url, b'{"model":', size=10_000)
        start = time.monotonic()
        # The connection is closed, not kept for the rest of the body.
        answer = b"".join(iter(lambda: caller.socket.recv(65536), b""))
        assert 0.2 < time.monotonic() - start < 3
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"body_too_slow" in answer
        caller.leave()
        assert made.settles(base)


def test_a_body_that_trickles_is_given_up(tmp_path: Path) -> None:
    with placed(write_policy(tmp_path), waits, upload_timeout=0.4) as made:
        caller = Caller(made.url, b"{", size=10_000)
        start = time.monotonic()
        caller.socket.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - start < 5:
            try:
                caller.socket.sendall(b" ")
                answer = caller.socket.recv(65536)
            except TimeoutError:
                continue
        assert b" 408 " in answer
        caller.leave()


# -- a full upstream ------------------------------------------------------------

TOLD = {"retry-after": "17", "retry-after-ms": "17000", "x-should-retry": "true", "x-else": "1"}
Answer = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "messages"])
@pytest.mark.parametrize("status", [429, 503])
def test_the_upstream_says_when_to_come_again(
    status: int, path: str, stream: bool, tmp_path: Path
) -> None:
    def full(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=TOLD, json={"error": {"message": "full"}})

    async def play() -> httpx.Response:
        async with client(full, write_policy(tmp_path)) as caller:
            return await caller.post(path, json={**ASK, "stream": stream, "max_tokens": 9})

    answer = asyncio.run(play())
    assert answer.status_code == status
    told = {name: answer.headers.get(name) for name in TOLD}
    assert told == {**TOLD, "x-else": None}
