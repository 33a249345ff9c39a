"""The sidecar's application: one route in, one flow a choice, one answer out.

It knows HTTP and nothing of what the flow decides. Whatever fails before the first byte has
a real status; after it, an error event. What nobody waits for is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request as Call
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mmguard import drive, guard, messages, sse
from mmguard.errors import ImageError, MmguardError
from mmguard.models.openai import OpenAIModel
from mmguard.policy import Policy, load_policy
from mmguard.runtime import Concurrent, Local, connect
from mmguard.server import wire
from mmguard.server.exchange import Branch, Exchange, Feed
from mmguard.server.failures import Refused, demand, tell
from mmguard.server.settings import Settings
from mmguard.server.speech import Speech
from mmguard.types import Detector, Guarded, Usage

PLAIN = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}
STREAM |= {"x-accel-buffering": "no"}


class Sidecar:
    """Policies bound, detectors loaded, one pool of connections: what all requests share."""

    def __init__(
        self, settings: Settings, detectors: Mapping[str, Detector] | None = None, **http: Any
    ) -> None:
        self.settings = settings
        self.upstream = OpenAIModel(
            settings.upstream,
            "default",
            key=settings.upstream_key,
            timeout=settings.timeout,
            **http,
        )
        self.policies: dict[str, Policy] = {}
        self.detectors: dict[str, Detector] = dict(detectors or {})
        for name in {settings.policy, *(k.policy for k in settings.keys.values() if k.policy)}:
            self.load(name)
        self.scoring = Concurrent(Local({}, self.detectors, timeout=settings.detector_timeout))
        self.flying = 0

    def load(self, name: str) -> None:
        """Bind a policy; its detectors prove their canaries as they load."""
        bound, local = connect(load_policy(name), {"target": self.upstream}, self.detectors)
        self.policies[name] = bound
        self.detectors.update(local.detectors)

    def policy(self, call: Call) -> Policy:
        """Whose request this is, and so under which policy."""
        settings = self.settings
        if not settings.keys:
            return self.policies[settings.policy]
        bearer = settings.bearer(call.headers.get("authorization", ""))
        if bearer is None:
            raise Refused(
                401,
                "invalid_request_error",
                "this sidecar does not know the key",
                code="invalid_api_key",
            )
        return self.policies[settings.keys[bearer].policy or settings.policy]

    def forward(self, call: Call) -> OpenAIModel:
        """The upstream, asked with the caller's own key where none is set."""
        given = call.headers.get("authorization")
        if given and not self.settings.upstream_key and not self.settings.keys:
            return self.upstream.bearing(given)
        return self.upstream

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """A place among the requests in flight, or a refusal; never an unguarded answer."""
        if self.flying >= self.settings.in_flight:
            raise Refused(
                429, "rate_limit_error", "too many requests in flight", code="overloaded", wait="1"
            )
        self.flying += 1
        try:
            yield
        finally:
            self.flying -= 1

    async def read(self, call: Call) -> wire.Json:
        """The body, no larger than it may be."""
        limit, data = self.settings.body_mib * 2**20, bytearray()
        async for piece in call.stream():
            data += piece
            if len(data) > limit:
                told = f"the body has more than {self.settings.body_mib:g} MiB"
                raise Refused(413, "invalid_request_error", told, code="body_too_large")
        return wire.load(bytes(data))

    def exchange(self, call: Call, body: wire.Json) -> Exchange:
        wire.count(body)
        options = {name: value for name, value in body.items() if name != "messages"}
        try:
            request = messages.parse(body.get("messages"), options, fetch=no_fetch)
        except ImageError as exc:
            raise Refused(
                400, "invalid_request_error", str(exc), code="invalid_image", param="messages"
            ) from exc
        return Exchange(self.forward(call), body, request)


def no_fetch(url: str) -> bytes:
    raise ImageError("pictures by URL are not fetched here: send them as data URIs")


def make_app(
    settings: Settings, detectors: Mapping[str, Detector] | None = None, **http: Any
) -> FastAPI:
    """The application, with detectors of your own by name.

    `transport=` and `atransport=` replace httpx's, in tests.
    """
    sidecar = Sidecar(settings, detectors, **http)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await sidecar.upstream.aclient.aclose()
        sidecar.upstream.close()

    app = FastAPI(title="mmguard", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.sidecar = sidecar

    @app.post("/v1/chat/completions")
    async def chat(call: Call) -> Response:
        return await answered(sidecar, call)

    @app.get("/v1/models")
    async def models(call: Call) -> Response:
        sidecar.policy(call)
        upstream = sidecar.forward(call)
        with upstream.reported():
            response = await upstream.aclient.get("models")
        return Response(response.content, response.status_code, PLAIN)

    @app.get("/healthz")
    @app.get("/readyz")
    async def healthy() -> dict[str, Any]:
        tags = sorted(policy.tag for policy in sidecar.policies.values())
        return {"status": "ok", "policies": tags}

    app.add_exception_handler(MmguardError, explain)
    return app


async def answered(sidecar: Sidecar, call: Call) -> Response:
    """One request, whole or streamed."""
    policy = sidecar.policy(call)
    body = await sidecar.read(call)
    exchange = sidecar.exchange(call, body)
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
    for guarded in answers:
        demand(guarded)
    raw, body = await exchange.whole() if exchange.answer else (b"", blank(exchange))
    told = headers(answers, start)
    if all(guarded.action == "pass" for guarded in answers):
        return Response(raw, 200, PLAIN | told)
    in_content = sidecar.settings.refusal_in_content
    return Response(wire.dump(rewrite(body, answers, in_content)), 200, PLAIN | told)


def blank(exchange: Exchange) -> wire.Json:
    """A completion that the upstream was never asked for."""
    made = wire.empty(str(exchange.body.get("model", "")))
    choices = [{"index": i, "message": {}} for i in range(exchange.choices)]
    return {**made, "choices": choices, "usage": wire.usage_of(Usage())}


def rewrite(body: wire.Json, answers: list[Guarded], in_content: bool) -> wire.Json:
    """The upstream's completion with its harmful choices mended or refused."""
    choices = [
        wire.mend(choice, answers[choice.get("index", i)], in_content)
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
    """The head waits for the first bytes, or a heartbeat: what fails before has a status."""
    pieces = speak(sidecar, exchange, policy)
    first = asyncio.ensure_future(anext(pieces))
    done, _ = await asyncio.wait({first}, timeout=sidecar.settings.heartbeat)
    if done:
        try:
            first.result()
        except BaseException:
            await pieces.aclose()
            raise
    told = {"x-mmguard-policy": policy.tag}
    return StreamingResponse(beat(first, pieces, sidecar.settings.heartbeat), 200, STREAM | told)


async def beat(
    first: asyncio.Future[bytes], pieces: AsyncGenerator[bytes, None], seconds: float
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
        _, body, _ = tell(exc)
        yield sse.frame(wire.dump(body)) + sse.DONE
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
        in_content = sidecar.settings.refusal_in_content
        speeches = [Speech(branch, feed, in_content) for branch in branches]
        async with aclosing(merge(feed, speeches, policy)) as pieces:
            async for piece in pieces:
                yield piece
        answers = [speech.guarded for speech in speeches if speech.guarded]
        yield b"".join(usage_frames(feed, answers)) + sse.DONE


async def merge(feed: Feed, speeches: list[Speech], policy: Policy) -> AsyncGenerator[bytes, None]:
    """What the choices send, as it comes. The upstream is left when none needs it any more."""
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(pour(speech, policy, queue)) for speech in speeches]
    reading = feed.start()
    try:
        for _ in speeches:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if item:
                    yield item
    finally:
        for task in (*tasks, reading):
            task.cancel()
        await asyncio.gather(*tasks, reading, return_exceptions=True)


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


async def explain(call: Call, exc: Exception) -> JSONResponse:
    status, body, more = tell(exc)
    return JSONResponse(body, status, dict(more))
