"""Chat completions: one flow a choice, whole or streamed, what passes as it came.

Whatever fails before the first byte has a real status; after it, an error event. What nobody
waits for is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request as Call
from fastapi.responses import Response, StreamingResponse

from mmguard import drive, guard, sse
from mmguard.errors import MmguardError
from mmguard.policy import Policy
from mmguard.server import wire
from mmguard.server.exchange import Branch, Exchange, Feed
from mmguard.server.failures import demand, tell
from mmguard.server.form import Form
from mmguard.server.sidecar import Sidecar
from mmguard.server.speech import Speech
from mmguard.types import Guarded, Usage

PLAIN = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}
STREAM |= {"x-accel-buffering": "no"}


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(call: Call) -> Response:
        return await answered(sidecar, call)

    @router.get("/v1/models")
    async def models(call: Call) -> Response:
        sidecar.policy(call)
        upstream = sidecar.forward(call)
        with upstream.reported():
            response = await upstream.aclient.get("models", headers=upstream.headers)
        return Response(response.content, response.status_code, PLAIN)

    return router


async def answered(sidecar: Sidecar, call: Call) -> Response:
    """One request, whole or streamed."""
    policy = sidecar.policy(call)
    body = await sidecar.read(call)
    exchange = await sidecar.exchange(call, body)
    if body.get("stream") is True:
        return await streamed(sidecar, exchange, policy)
    async with sidecar.room():
        return await whole(sidecar, exchange, policy)


# -- whole --------------------------------------------------------------------


async def whole(sidecar: Sidecar, exchange: Exchange, policy: Policy) -> Response:
    """A flow for each choice, all at once; what all pass goes back as it came."""
    start = time.perf_counter()
    flows = [
        drive.arun(guard(exchange.request, policy), Branch(exchange, i, sidecar.scoring))
        for i in range(exchange.choices)
    ]
    try:
        answers = await asyncio.gather(*flows)
    finally:
        exchange.leave()
    sidecar.watch.note(exchange, answers)
    for guarded in answers:
        demand(guarded)
    raw, body = await exchange.whole() if exchange.answer else (b"", blank(exchange))
    told = headers(answers, start)
    if all(guarded.action == "pass" for guarded in answers):
        return Response(raw, 200, PLAIN | told)
    in_content = sidecar.settings.refusal_in_content
    return Response(wire.dump(rewrite(body, answers, exchange.form, in_content)), 200, PLAIN | told)


def blank(exchange: Exchange) -> wire.Json:
    """A completion that the upstream was never asked for."""
    made = wire.empty(str(exchange.body.get("model", "")), exchange.form.kind)
    choices = [{"index": i} for i in range(exchange.choices)]
    return {**made, "choices": choices, "usage": wire.usage_of(Usage())}


def rewrite(body: wire.Json, answers: list[Guarded], form: Form, in_content: bool) -> wire.Json:
    """The upstream's completion with its harmful choices mended or refused."""
    choices = [
        form.mend(choice, answers[choice.get("index", i)], in_content)
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


async def streamed(sidecar: Sidecar, exchange: Exchange, policy: Policy) -> Response:
    return await begin(sidecar, policy, speak(sidecar, exchange, policy))


def broken(exc: MmguardError) -> bytes:
    """How a stream ends that fails after its head."""
    return sse.frame(wire.dump(tell(exc)[1])) + sse.DONE


async def begin(
    sidecar: Sidecar,
    policy: Policy,
    pieces: AsyncGenerator[bytes, None],
    fail: Callable[[MmguardError], bytes] = broken,
) -> Response:
    """The head waits for the first bytes, or a heartbeat: what fails before has a status."""
    first = asyncio.ensure_future(anext(pieces))
    done, _ = await asyncio.wait({first}, timeout=sidecar.settings.heartbeat)
    if done:
        try:
            first.result()
        except BaseException:
            await pieces.aclose()
            raise
    told = {"x-mmguard-policy": policy.tag}
    spoken = beat(first, pieces, sidecar.settings.heartbeat, fail)
    return StreamingResponse(spoken, 200, STREAM | told)


async def beat(
    first: asyncio.Future[bytes],
    pieces: AsyncGenerator[bytes, None],
    seconds: float,
    fail: Callable[[MmguardError], bytes],
) -> AsyncGenerator[bytes, None]:
    """The pieces, a comment wherever they take long, an error event if they fail."""
    waiting: asyncio.Future[bytes] = first
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield b": still here\n\n"
                continue
            yield waiting.result()
            waiting = asyncio.ensure_future(anext(pieces))
    except StopAsyncIteration:
        return
    except MmguardError as exc:
        yield fail(exc)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await pieces.aclose()


async def speak(
    sidecar: Sidecar, exchange: Exchange, policy: Policy
) -> AsyncGenerator[bytes, None]:
    """All choices' bytes as they may leave, then usage and the end."""
    async with sidecar.room():
        branches = [Branch(exchange, i, sidecar.scoring) for i in range(exchange.choices)]
        feed = Feed(exchange, branches)
        in_content = exchange.form.bare or sidecar.settings.refusal_in_content
        speeches = [Speech(branch, feed, in_content) for branch in branches]
        with sidecar.watch.speaking(feed, speeches):
            async with aclosing(merge(feed, speeches, policy)) as pieces:
                async for piece in pieces:
                    yield piece
        answers = [speech.guarded for speech in speeches if speech.guarded]
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


def usage_frames(feed: Feed, answers: list[Guarded]) -> list[bytes]:
    """Chunks of no choice, as they came unless further calls add to the usage that they report."""
    extra = wire.extra_usage(answers)
    return [
        sse.frame(wire.dump({**chunk, "usage": wire.add_usage(chunk["usage"], extra)}))
        if chunk.get("usage") and extra != Usage()
        else raw
        for raw, chunk in feed.asides
    ]
