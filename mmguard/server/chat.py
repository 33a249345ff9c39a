"""Chat completions: one flow a choice, whole or streamed, what passes as it came.

Whatever fails before the first byte has a real status; after it, an error event. What nobody
waits for is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request as Call
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mmguard import drive, guard, sse
from mmguard.policy import Policy
from mmguard.server import annotation, wire
from mmguard.server.exchange import Branch, Exchange, Feed, place
from mmguard.server.failures import demand, tell
from mmguard.server.form import Form
from mmguard.server.sidecar import Sidecar
from mmguard.server.spans import watched
from mmguard.server.speech import Speech
from mmguard.types import Guarded, Usage

T = TypeVar("T")
Fail = Callable[[Exception], bytes]
PLAIN = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}
STREAM |= {"x-accel-buffering": "no"}


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(call: Call) -> Response:
        return await answered(sidecar, call)

    return router


async def answered(sidecar: Sidecar, call: Call) -> Response:
    """One request, whole or streamed."""
    exchange = await sidecar.exchange(call, await sidecar.read(call))
    policy = sidecar.policy(call, exchange.body)
    if sidecar.settings.moderation == "answer":
        policy = annotation.attend(exchange, policy, sidecar.scoring)
    if exchange.body.get("stream") is True:
        return await streamed(sidecar, exchange, policy, call)
    return await attended(call, whole(sidecar, exchange, policy))


async def attended(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises `ClientDisconnect`, and ends the work, when the caller leaves."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(departure(call))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await end(task, gone)


async def departure(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancelled, and waited for."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# -- whole --------------------------------------------------------------------


async def whole(sidecar: Sidecar, exchange: Exchange, policy: Policy) -> Response:
    """A flow for each choice, all at once; what all pass goes back as it came."""
    start = time.perf_counter()
    branches = [Branch(exchange, i, sidecar.scoring) for i in range(exchange.choices)]
    flows = [watched(guard(exchange.request, policy), branch.index) for branch in branches]
    tasks = [asyncio.ensure_future(drive.arun(*both)) for both in zip(flows, branches, strict=True)]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        exchange.leave()
        await end(*tasks)
    sidecar.watch.note(exchange, answers)
    for guarded in answers:
        demand(guarded)
    raw, body = await exchange.whole() if exchange.answer else (b"", blank(exchange))
    told, passed = headers(answers, start), all(guarded.action == "pass" for guarded in answers)
    if not passed:
        body = rewrite(body, answers, exchange.form, sidecar.settings.refusal_in_content)
    if exchange.annotate:
        body = {**body, **(await exchange.annotate(answers))}
    elif passed:
        return Response(raw, 200, PLAIN | told)
    return Response(wire.dump(body), 200, PLAIN | told)


def blank(exchange: Exchange) -> wire.Json:
    """A completion that the upstream was never asked for."""
    made = wire.empty(str(exchange.body.get("model", "")), exchange.form.kind)
    choices = [{"index": i} for i in range(exchange.choices)]
    return {**made, "choices": choices, "usage": wire.usage_of(Usage())}


def rewrite(body: wire.Json, answers: list[Guarded], form: Form, in_content: bool) -> wire.Json:
    """The upstream's completion with its harmful choices mended or refused."""
    choices = [
        form.mend(choice, answers[place(choice, i)], in_content)
        for i, choice in enumerate(body["choices"])
    ]
    usage = wire.add_usage(body.get("usage"), wire.extra_usage(answers))
    own = {"choices": [wire.account(guarded) for guarded in answers]}
    return {**body, "choices": choices, "usage": usage, "mmguard": own}


def headers(answers: list[Guarded], start: float) -> dict[str, str]:
    spent = sum(finding.ms for guarded in answers for finding in guarded.trail)
    total = (time.perf_counter() - start) * 1e3
    return wire.headers(answers) | {
        "x-mmguard-guard-ms": f"{spent:.1f}",
        "x-mmguard-total-ms": f"{total:.1f}",
    }


# -- streamed -----------------------------------------------------------------


async def streamed(sidecar: Sidecar, exchange: Exchange, policy: Policy, call: Call) -> Response:
    return await begin(sidecar, policy, call, speak(sidecar, exchange, policy))


def broken(exc: Exception) -> bytes:
    """How a stream ends that fails after its head."""
    return sse.frame(wire.dump(tell(exc)[1])) + sse.DONE


async def begin(
    sidecar: Sidecar,
    policy: Policy,
    call: Call,
    pieces: AsyncGenerator[bytes, None],
    fail: Fail = broken,
) -> Response:
    """The head waits for the first bytes, or a heartbeat: what fails before has a status."""
    beat = Beat(pieces, sidecar.settings.heartbeat, fail)
    try:
        await attended(call, beat.begin())
    except BaseException:
        await beat.close()
        raise
    return Spoken(beat, {"x-mmguard-policy": wire.spell(policy.tag)})


class Spoken(StreamingResponse):
    """A stream that is closed however it ends, even where it never began."""

    def __init__(self, beat: Beat, told: dict[str, str]) -> None:
        super().__init__(beat.run(), 200, STREAM | told)
        self.beat = beat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.beat.close()


class Beat:
    """The pieces, a comment wherever they take long, an error event if they fail."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], seconds: float, fail: Fail) -> None:
        self.pieces, self.seconds, self.fail = pieces, seconds, fail
        self.waiting: asyncio.Future[bytes] = asyncio.ensure_future(anext(pieces))

    async def begin(self) -> None:
        """Until the first piece or the first beat. Raises what failed before either."""
        if await self.due():
            self.waiting.result()

    async def due(self) -> bool:
        done, _ = await asyncio.wait({self.waiting}, timeout=self.seconds)
        return bool(done)

    async def run(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                if not await self.due():
                    yield b": still here\n\n"
                    continue
                yield self.waiting.result()
                self.waiting = asyncio.ensure_future(anext(self.pieces))
        except StopAsyncIteration:
            return
        except Exception as exc:
            yield self.fail(exc)

    async def close(self) -> None:
        await end(self.waiting)
        await self.pieces.aclose()


async def speak(
    sidecar: Sidecar, exchange: Exchange, policy: Policy
) -> AsyncGenerator[bytes, None]:
    """All choices' bytes as they may leave, then usage and the end."""
    branches = [Branch(exchange, i, sidecar.scoring) for i in range(exchange.choices)]
    feed = Feed(exchange, branches)
    in_content = exchange.form.bare or sidecar.settings.refusal_in_content
    speeches = [Speech(branch, feed, in_content) for branch in branches]
    with sidecar.watch.speaking(feed, speeches):
        async with aclosing(merge(feed, speeches, policy)) as pieces:
            async for piece in pieces:
                yield feed.lead + piece
                feed.lead = b""
    answers = [speech.guarded for speech in speeches if speech.guarded]
    if exchange.annotate:
        yield aside(feed, await exchange.annotate(answers))
    yield b"".join(usage_frames(feed, answers)) + sse.DONE


async def merge(
    feed: Feed, speeches: Sequence[Speech], policy: Policy
) -> AsyncGenerator[bytes, None]:
    """What the choices send, as it comes. The upstream is left when none needs it any more."""
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(pour(speech, policy, queue)) for speech in speeches]
    feed.start()
    try:
        for _ in speeches:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if item:
                    yield item
    finally:
        feed.exchange.leave()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pour(
    speech: Speech, policy: Policy, queue: asyncio.Queue[bytes | Exception | None]
) -> None:
    """One choice's bytes into the queue of all, then its failure or its end."""
    try:
        async for piece in speech.run(policy):
            queue.put_nowait(piece)
        queue.put_nowait(None)
    except Exception as exc:
        queue.put_nowait(exc)


def aside(feed: Feed, told: wire.Json) -> bytes:
    """A chunk of no choice."""
    shared = {k: None if k == "usage" else v for k, v in feed.first.items()}
    return sse.frame(wire.dump({**feed.blank, **shared, "choices": [], **told}))


def usage_frames(feed: Feed, answers: list[Guarded]) -> list[bytes]:
    """Chunks of no choice, as they came unless further calls add to the usage that they report."""
    extra = wire.extra_usage(answers)
    return [
        sse.frame(wire.dump({**chunk, "usage": wire.add_usage(chunk["usage"], extra)}))
        if chunk.get("usage") and extra != Usage()
        else raw
        for raw, chunk in feed.asides
    ]
