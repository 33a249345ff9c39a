"""OpenTelemetry's traces: a span a request, below it choices, stages, scores and calls.

The caller's W3C `traceparent` is continued and sent upstream. Attributes are names of ours,
of policies, steps and detectors, numbers and fixed words: nothing that anybody said.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import httpx
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmguard import __version__
from mmguard.asks import Flow
from mmguard.case import WATCH
from mmguard.models.openai import OpenAIModel
from mmguard.server.entry import ending, kind_of, tokens
from mmguard.server.spans import NOW
from mmguard.server.visit import VISIT, Visit
from mmguard.server.watch import Scoring
from mmguard.types import Finding, Guarded, Sample
from mmguard.verdict import strictest

T = TypeVar("T")
log = logging.getLogger("mmguard.server")
STOP = 5.0
# What is asked every few seconds and says nothing of a request.
QUIET = frozenset({"/healthz", "/readyz", "/health", "/metrics"})
W3C = TraceContextTextMapPropagator()
OPERATIONS = ("chat/completions", "completions", "messages", "models")


def open_exporter() -> SpanExporter:
    """Where and how is told by OpenTelemetry's own variables, `OTEL_EXPORTER_OTLP_ENDPOINT`, ..."""
    return OTLPSpanExporter()


class Tracing:
    """One sidecar's spans, sent in batches by a thread of their own."""

    def __init__(self) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "mmguard"}
        self.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(open_exporter()))
        self.tracer = self.provider.get_tracer("mmguard", __version__)

    def upstream(self, *given: Any, **http: Any) -> OpenAIModel:
        model = Upstream(*given, **http)
        model.aclient.event_hooks = {"request": [departs], "response": [arrives]}
        return model

    def scoring(self, *given: Any) -> Scoring:
        return Scored(*given)

    def door(self, app: ASGIApp) -> Spanned:
        return Spanned(app, self.tracer)

    def close(self) -> None:
        """Send what is still to be sent, for as long as a stop may wait for a collector."""
        last = threading.Thread(target=self.provider.shutdown, daemon=True)
        last.start()
        last.join(STOP)
        if last.is_alive():
            log.warning("the collector did not take the last traces within %g s", STOP)


class Node:
    """A span, and what makes others below it. Attributes of ours begin with `mmguard.`"""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self.tracer, self.span = tracer, span

    def child(self, name: str, kind: SpanKind = SpanKind.INTERNAL, **told: Any) -> Node:
        context = set_span_in_context(self.span)
        return Node(self.tracer, self.tracer.start_span(name, context, kind)).tell(**told)

    def tell(self, **told: Any) -> Node:
        self.span.set_attributes({f"mmguard.{name}": value for name, value in told.items()})
        return self

    def count(self, prompt: int, completion: int) -> None:
        """Tokens, where any were told of."""
        if prompt or completion:
            self.span.set_attribute("gen_ai.usage.input_tokens", prompt)
            self.span.set_attribute("gen_ai.usage.output_tokens", completion)

    def total(self, answers: Iterable[Guarded], usage: Mapping[str, Any] | None) -> None:
        """The tokens of a request: its drafts', as the upstream tells them, and all others'."""
        spent = [tokens(guarded, usage if i == 0 else None) for i, guarded in enumerate(answers)]
        self.count(sum(prompt for prompt, _ in spent), sum(made for _, made in spent))

    def fail(self, kind: str) -> None:
        self.span.set_attribute("error.type", kind)
        self.span.set_status(StatusCode.ERROR)

    def follow(self, flow: Flow[T], index: int) -> Flow[T]:
        """The flow of one choice, with a span for itself and one for each stage."""
        stages, before = Stages(self.child("guard", choice=index)), WATCH.get()
        WATCH.set(stages.hear)
        try:
            with below(stages.root), closing(stages):
                result = yield from flow
                if isinstance(result, Guarded):
                    stages.conclude(result)
                return result
        finally:
            WATCH.set(before)


@contextmanager
def below(node: Node) -> Iterator[Node]:
    """While what happens belongs to this span; it ends here, with the kind of any failure.

    Nothing is restored by token: generators may be closed in another context.
    """
    before = NOW.get()
    NOW.set(node)
    try:
        yield node
    except Exception as exc:
        node.fail(type(exc).__name__)
        raise
    finally:
        node.span.end()
        if NOW.get() is node:
            NOW.set(before)


class Stages:
    """The stages of one choice, as its flow tells of them; each lasts until the next begins."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.stage, self.making, self.check = "", root, root

    def hear(self, event: str, stage: str, findings: Sequence[Finding]) -> None:
        match event:
            case "begin":
                self.begin(stage)
            case "check":
                if stage not in (self.stage, "stream"):
                    self.close()
                self.check = self.making.child(f"check {stage}", stage=stage)
                NOW.set(self.check)
            case "checked":
                self.judge(findings)
            case "failed":
                self.making.tell(outcome=findings[0].label)
                if findings[0].error:
                    self.making.fail(kind_of(findings[0].error))

    def begin(self, stage: str) -> None:
        """An answer is in the making: the draft, or a repair."""
        self.close()
        name = stage if stage == "draft" else f"repair {stage}"
        self.stage, self.making = stage, self.root.child(name, step=stage)
        NOW.set(self.making)

    def judge(self, findings: Sequence[Finding]) -> None:
        self.check.tell(action=strictest(f.action for f in findings))
        self.check.span.end()
        self.check = self.root
        NOW.set(self.making)

    def close(self) -> None:
        """What has begun is over."""
        for node in (self.check, self.making):
            if node is not self.root:
                node.span.end()
        self.stage, self.making, self.check = "", self.root, self.root
        NOW.set(self.root)

    def conclude(self, guarded: Guarded) -> None:
        told = {"action": guarded.action, "decision": guarded.decision, "step": guarded.step}
        told |= {"policy": guarded.policy, "finish": ending(guarded.finish)}
        self.root.tell(**told, guard_ms=sum(finding.ms for finding in guarded.trail))
        self.root.count(*tokens(guarded, None))


class Scored(Scoring):
    """Detectors with a span for each score, its waiting included."""

    async def score(self, detector: str, sample: Sample) -> Finding:
        node = NOW.get()
        if node is None:
            return await super().score(detector, sample)
        with below(node.child(f"score {detector}", detector=detector)) as own:
            finding = await super().score(detector, sample)
            own.tell(score=float(finding.score), images=finding.images, chars=finding.chars)
            if finding.error:
                own.fail(kind_of(finding.error))
            return finding


# -- calls upstream ----------------------------------------------------------------


class Upstream(OpenAIModel):
    """The upstream, each call of it a span from its start to its last byte."""

    @contextmanager
    def reported(self) -> Iterator[None]:
        node = NOW.get()
        if node is None:
            with super().reported():
                yield
            return
        with below(node.child("upstream", SpanKind.CLIENT)), super().reported():
            yield


async def departs(request: httpx.Request) -> None:
    if node := NOW.get():
        W3C.inject(request.headers, set_span_in_context(node.span))
        node.span.update_name(f"{request.method} {operation(request.url.path)}")
        told = {"http.request.method": request.method, "server.address": request.url.host}
        node.span.set_attributes(told)


async def arrives(response: httpx.Response) -> None:
    if node := NOW.get():
        node.span.set_attribute("http.response.status_code", response.status_code)
        if response.status_code >= 400:
            node.fail(str(response.status_code))


def operation(path: str) -> str:
    return next((name for name in OPERATIONS if path.endswith(name)), "other")


# -- requests ------------------------------------------------------------------------


class Spanned:
    """ASGI: a span from a request's first byte to its answer's last."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app, self.tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self.app(scope, receive, send)
            return
        context, before = W3C.extract(Headers(scope=scope)), VISIT.get()
        span = self.tracer.start_span(scope["method"], context, SpanKind.SERVER)
        seen: dict[str, int] = {}
        with below(Node(self.tracer, span)) as node:
            try:
                await self.app(scope, receive, note(seen, send))
            finally:
                describe(node, scope, seen.get("status", 0))
                if (visit := VISIT.get()) and visit is not before:
                    recount(node, visit)


def note(seen: MutableMapping[str, int], send: Send) -> Send:
    """`send`, noting the status on the way."""

    async def sends(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen["status"] = message["status"]
        await send(message)

    return sends


def describe(node: Node, scope: Mapping[str, Any], status: int) -> None:
    route = getattr(scope.get("route"), "path", "other")
    node.span.update_name(f"{scope['method']} {route}")
    told = {"http.request.method": scope["method"], "http.route": route}
    node.span.set_attributes({**told, "http.response.status_code": status})
    if status >= 500:
        node.fail(str(status))


def recount(node: Node, visit: Visit) -> None:
    """What the access line says too."""
    line = visit.line()
    names = ("request", "policy", "decision", "choices", "ms", "guard_ms", "first_ms")
    node.tell(**{name: line[name] for name in names if line[name] is not None})
