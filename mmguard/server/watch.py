"""What the outside sees of the sidecar: metrics, the audit, access lines, request ids.

`Door` stands before all routes and follows each request from its start to its last byte;
routes tell `Watch` only what was decided. It changes no answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmguard.drive import AsyncPieces
from mmguard.policy import Policy
from mmguard.runtime import AsyncModel, Concurrent
from mmguard.server.audit import Audit
from mmguard.server.breaker import Tried
from mmguard.server.entry import Entry
from mmguard.server.failures import Refused, tell
from mmguard.server.metrics import Levels, Metrics
from mmguard.server.pulse import Pulse
from mmguard.server.spans import NOW
from mmguard.server.visit import VISIT, Visit, identify
from mmguard.server.wire import spell
from mmguard.types import AnyRequest, Finding, Guarded, Reply, Sample

if TYPE_CHECKING:
    from mmguard.server.exchange import Exchange, Feed
    from mmguard.server.sidecar import Sidecar
    from mmguard.server.speech import Speech

access = logging.getLogger("mmguard.server.access")


class Watch:
    """The observer of one sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        settings = sidecar.settings
        self.sidecar = sidecar
        self.audit = Audit(settings.audit) if settings.audit.kept else None
        self.metrics = Metrics(lambda: named(sidecar.policies))
        self.pulse = Pulse(lambda: sidecar.gate.flying)
        self.metrics.watch(Levels(sidecar.gate, self.audit, sidecar.breakers))

    @property
    def closed(self) -> bool:
        """Whether requests must wait for an audit that cannot be written."""
        return bool(self.audit and self.audit.settings.fail_closed and not self.audit.healthy())

    def under(self, policy: Policy, key: str = "") -> Policy:
        """Whose request this is, and under which policy."""
        visit = VISIT.get() or Visit()
        visit.policy, visit.key = policy.tag, key
        return policy

    def note(self, exchange: Exchange, answers: Sequence[Guarded]) -> None:
        """Every choice of a whole answer is decided."""
        done = exchange.answer
        ready = done and done.done() and not done.cancelled() and done.exception() is None
        usage = done.result()[1].get("usage") if done and ready else None
        self.decided(exchange, dict(enumerate(answers)), usage)

    @contextmanager
    def speaking(self, feed: Feed, speeches: Sequence[Speech]) -> Iterator[None]:
        """While a stream goes out: however it ends, what was decided or has left counts."""
        try:
            yield
        except Exception:
            if visit := VISIT.get():
                visit.failed = True
            raise
        finally:
            answers = {s.branch.index: s.guarded or unfinished(s) for s in speeches if begun(s)}
            usages = [chunk["usage"] for _, chunk in feed.asides if chunk.get("usage")]
            self.decided(feed.exchange, answers, usages[-1] if usages else None)

    def decided(
        self, exchange: Exchange, answers: Mapping[int, Guarded], usage: Mapping[str, Any] | None
    ) -> None:
        visit = VISIT.get() or Visit()
        visit.take(answers.values())
        if node := NOW.get():
            node.total(answers.values(), usage)
        self.metrics.answer(visit, list(answers.values()), usage)
        self.pulse.answer(answers.values())
        if self.audit and answers:
            self.audit.offer(Entry(visit, visit.seconds, exchange.request, answers, usage))

    def scored(self, detector: str, seconds: float) -> None:
        self.metrics.detector.labels(detector).observe(seconds)
        if visit := VISIT.get():
            visit.guard += seconds

    def leave(self, visit: Visit) -> None:
        """The request is over, in whichever way."""
        self.metrics.leave(visit)
        self.pulse.leave(visit)
        if access.isEnabledFor(logging.INFO):
            access.info("%s", json.dumps(visit.line()))

    def close(self) -> None:
        """Write what is still to be written."""
        if self.audit:
            self.audit.close()


def begun(speech: Speech) -> bool:
    return speech.begun or speech.guarded is not None


def unfinished(speech: Speech) -> Guarded:
    """A choice that broke off, or that its caller left: of the draft, what had left it."""
    visit, ledger = VISIT.get() or Visit(), speech.branch.ledger
    text, tag = ledger.text[: ledger.gone], visit.policy
    return Guarded(text, "pass", "unfinished", policy=tag, finish="cut")


def named(policies: Mapping[str, Policy]) -> set[str]:
    """The categories that policies name."""
    checks = [c for policy in policies.values() for c in (*policy.input, *policy.output)]
    return {name for check in checks for name in check.categories}


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(sidecar.watch.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


class Scoring(Concurrent):
    """Detectors whose times are watched, and models of repairs and judges; all with breakers."""

    def __init__(self, local: Tried, watch: Watch) -> None:
        super().__init__(local)
        self.watch, self.breakers = watch, local.breakers

    async def score(self, detector: str, sample: Sample) -> Finding:
        breaker = self.breakers.find("detector", detector)
        trial, start = breaker.admit(), time.perf_counter()
        try:
            return await super().score(detector, sample)
        except asyncio.CancelledError:
            breaker.leave(trial)
            raise
        finally:
            self.watch.scored(detector, time.perf_counter() - start)

    async def ask(self, name: str, model: AsyncModel, request: AnyRequest) -> Reply:
        """The model's reply, under the name that the policy has for it."""
        with self.breakers.find("model", name).asked():
            return await model.agenerate(request)

    async def read(self, name: str, model: AsyncModel, request: AnyRequest) -> AsyncPieces:
        with self.breakers.find("model", name).asked():
            async with aclosing(model.astream(request)) as pieces:
                async for piece in pieces:
                    yield piece


class Door:
    """ASGI: follows what is asked under /v1, and gives it an `x-request-id`."""

    def __init__(self, app: ASGIApp, watch: Watch) -> None:
        self.app, self.watch = app, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        visit = Visit(identify(Headers(scope=scope).get("x-request-id")), scope)
        VISIT.set(visit)
        shut = scope["method"] == "POST" and self.watch.closed
        try:
            app = unavailable() if shut else self.app
            await app(scope, hear(visit, receive), follow(visit, send))
        except ClientDisconnect:
            visit.left = True
            raise
        except Exception:
            visit.status = visit.status or 500
            visit.failed = True
            raise
        finally:
            visit.status = visit.status or 499
            self.watch.leave(visit)


def hear(visit: Visit, receive: Receive) -> Receive:
    """`receive`, noting a caller that leaves before the end."""

    async def receives() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" and not visit.ended:
            visit.left = True
        return message

    return receives


def follow(visit: Visit, send: Send) -> Send:
    """`send`, noting on the way what of the answer has gone out."""

    async def sends(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = visit.id
            if visit.policy != "none":
                headers.setdefault("x-mmguard-policy", spell(visit.policy))
            visit.status = message["status"]
            visit.streams = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            begins(visit, message.get("body", b""))
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            visit.ended = True

    return sends


def begins(visit: Visit, body: bytes) -> None:
    """A heartbeat is no first byte."""
    if visit.streams and visit.first is None and body and not body.startswith(b":"):
        visit.first = visit.seconds


def unavailable() -> ASGIApp:
    told = "what is decided cannot be recorded now"
    status, body, more = tell(Refused(503, "audit_unavailable", told, wait="5"))
    return JSONResponse(body, status, more)
