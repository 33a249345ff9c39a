"""Whoever leaves a call, at whichever step of it, leaves no connection open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import httpx
import pytest

from mmguard.models.openai import OpenAIModel
from mmguard.server.exchange import Branch, Exchange, Feed
from tests.upstream import completion, streamed
from tests.world import ask

ANSWER = json.dumps(completion({"content": "all is fine"})).encode()
EVENTS = streamed([{"content": "all "}, {"content": "is "}, {"content": "fine"}])
BODY = {"model": "m", "messages": [{"role": "user", "content": "what is this?"}]}


class Upstream:
    """A server in the callers' own loop, so that each of their steps is one of its."""

    def __init__(self) -> None:
        self.open, self.url, self.empty = 0, "", asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.empty.clear()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                stream = b'"stream":true' in (await reader.readexactly(size)).replace(b" ", b"")
                kind, body = ("text/event-stream", EVENTS) if stream else ("text/json", ANSWER)
                told = f"content-type: {kind}\r\ncontent-length: {len(body)}"
                writer.write(f"HTTP/1.1 200 OK\r\n{told}\r\n\r\n".encode() + body)
        writer.close()
        self.open -= 1
        if not self.open:
            self.empty.set()


@asynccontextmanager
async def placed(idle: int) -> AsyncIterator[tuple[Upstream, OpenAIModel]]:
    """The server, and a model of it that keeps so many idle connections."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    model = OpenAIModel(
        upstream.url, "m", limits=httpx.Limits(max_keepalive_connections=idle), verify=False
    )
    yield upstream, model
    await model.aclient.aclose()
    model.close()
    server.close()
    await upstream.empty.wait()
    await asyncio.sleep(0)


async def whole(model: OpenAIModel) -> None:
    await model.agenerate(ask())


async def pieces(model: OpenAIModel) -> None:
    async for _ in model.astream(ask()):
        pass


async def exchanged(model: OpenAIModel) -> None:
    exchange = Exchange(model, BODY, ask())
    try:
        await exchange.whole()
    finally:
        exchange.leave()


async def fed(model: OpenAIModel) -> None:
    exchange = Exchange(model, {**BODY, "stream": True}, ask())
    branch = Branch(exchange, 0, cast(Any, None))
    Feed(exchange, [branch]).start()
    try:
        async for _ in branch.pieces():
            pass
    finally:
        exchange.leave()


Use = Callable[[OpenAIModel], Coroutine[Any, Any, None]]
USES: list[Use] = [whole, pieces, exchanged, fed]


@pytest.mark.parametrize("idle", [0, 1], ids=["connecting", "connected"])
@pytest.mark.parametrize("use", USES)
def test_a_call_that_is_left_at_any_step_keeps_no_connection(use: Use, idle: int) -> None:
    async def play() -> list[int]:
        """The steps after which more is open than may be idle."""
        async with placed(idle) as (upstream, model):
            await use(model)
            step, lost = 0, list[int]()
            while await left(use(model), step):
                await use(model)
                await settled(upstream, idle + len(lost))
                if upstream.open > idle + len(lost):
                    lost.append(step)
                step += 1
            return lost

    assert asyncio.run(play()) == []


async def left(use: Coroutine[Any, Any, None], step: int) -> bool:
    """Left after so many steps of the loop, twice as the impatient do; whether before its end."""
    task = asyncio.ensure_future(use)
    for _ in range(step):
        await asyncio.sleep(0)
    early = not task.done()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return early


async def settled(upstream: Upstream, most: int) -> None:
    """No more than this open, or it is too late."""
    for i in range(100):
        await asyncio.sleep(0 if i < 50 else 0.005)
        if upstream.open <= most and i > 20:
            return


def test_a_call_that_is_left_in_a_handshake_keeps_no_connection() -> None:
    """Nothing comes back: the connection is closed when the handshake has taken too long."""

    async def play() -> None:
        closed = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(4096):
                pass
            writer.close()
            closed.set()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        model = OpenAIModel(f"https://127.0.0.1:{port}/v1", "m", timeout=0.4, verify=False)
        task = asyncio.ensure_future(model.agenerate(ask()))
        await asyncio.sleep(0.15)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            await closed.wait()
        await model.aclient.aclose()
        model.close()
        server.close()

    asyncio.run(play())
