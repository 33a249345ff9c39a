"""Traces: one tree a request, joined to the caller's and the upstream's, and nobody's words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings as hypothesis, strategies as st

from mmguard.errors import MissingExtra
from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.settings import Settings, load_settings
from mmguard.types import Finding, Sample
from tests.loopback import served
from tests.test_metrics import CHAT, calling, send, upstream
from tests.upstream import Cuts, app, completion, streamed, write_policy
from tests.world import BAD, WORDS

sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the exporter is missing")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"
CHECK, BROKEN = ({"detector": name, "action": "block"} for name in ("harm", "broken"))
WINDOW = {"stream": {"mode": "window", "window": 4, "hold": 2}}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = sdk.InMemorySpanExporter()
    monkeypatch.setattr("mmguard.server.traces.open_exporter", lambda: found)
    return found


def spans(sidecar: FastAPI, kept: Any) -> list[Any]:
    sidecar.state.sidecar.tracing.provider.force_flush()
    return sorted(kept.get_finished_spans(), key=lambda span: span.start_time)


def tree(found: list[Any], parent: int | None = None) -> Any:
    """Names below names, in the order of their beginnings."""
    ids = {span.context.span_id for span in found}
    own = [s for s in found if (s.parent.span_id if s.parent else None) == parent]
    if parent is None:
        own = [s for s in found if s.parent is None or s.parent.span_id not in ids]
    return [(s.name, tree(found, s.context.span_id)) for s in own]


def told(found: list[Any], name: str) -> dict[str, Any]:
    (span,) = [span for span in found if span.name == name]
    return dict(span.attributes)


POST = f"POST {CHAT}"
ASKED: Any = ("POST chat/completions", [])
SCORED: Any = [("score harm", [])]


def test_a_request_that_passes(kept: Any, tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path, input=[CHECK]), otel=True)
    send(sidecar, {}, **{"x-request-id": "mine-7"})
    found = spans(sidecar, kept)
    stages = [("check input", SCORED), ("draft", [ASKED]), ("check output", SCORED)]
    assert tree(found) == [(POST, [("guard", stages)])]
    whole, own = told(found, POST), told(found, "guard")
    (tag,) = {policy.tag for policy in sidecar.state.sidecar.policies.values()}
    assert (whole["http.route"], whole["http.response.status_code"]) == (CHAT, 200)
    assert (whole["mmguard.request"], whole["mmguard.decision"]) == ("mine-7", "pass")
    assert (whole["gen_ai.usage.input_tokens"], whole["gen_ai.usage.output_tokens"]) == (7, 5)
    assert whole["mmguard.policy"] == own["mmguard.policy"] == tag
    assert whole["mmguard.ms"] >= whole["mmguard.guard_ms"] > 0
    assert (own["mmguard.action"], own["mmguard.step"]) == ("pass", "answer")
    assert told(found, "check output")["mmguard.action"] == "pass"
    scores = [dict(s.attributes) for s in found if s.name == "score harm"]
    assert [s["mmguard.score"] for s in scores] == [0.1, 0.1]
    assert told(found, ASKED[0])["http.response.status_code"] == 200
    assert all(span.end_time >= span.start_time for span in found)


def test_repairs_and_why_they_failed(kept: Any, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["caption", "rewrite"])
    sidecar = app(upstream, policy, otel=True)
    send(sidecar, {"act": "mend"})
    found = spans(sidecar, kept)
    (guard,) = tree(found)[0][1]
    assert [name for name, _ in guard[1]] == [
        "draft",
        "check output",
        "repair caption",
        "repair rewrite",
    ]
    assert guard[1][2][1] == []
    assert guard[1][3][1] == [ASKED, ASKED, ("check rewrite", SCORED)]
    assert told(found, "repair caption")["mmguard.outcome"] == "skipped"
    assert told(found, "check output")["mmguard.action"] == "repair"
    assert told(found, "check rewrite")["mmguard.action"] == "pass"
    own = told(found, "guard")
    assert (own["mmguard.action"], own["mmguard.step"]) == ("repair", "rewrite")
    assert own["gen_ai.usage.output_tokens"] == 10
    assert told(found, POST)["gen_ai.usage.output_tokens"] == 15


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_is_told(stream: bool, kept: Any, tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path), otel=True)
    send(sidecar, {"n": 3, "act": "block", "stream": stream})
    found = spans(sidecar, kept)
    guards = [span for span in found if span.name == "guard"]
    assert sorted(span.attributes["mmguard.choice"] for span in guards) == [0, 1, 2]
    assert {span.attributes["mmguard.action"] for span in guards} == {"block"}
    assert len([span for span in found if span.name == ASKED[0]]) == 1
    assert len({span.context.trace_id for span in found}) == 1


def test_a_window_has_checks_in_its_draft(kept: Any, tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path, **WINDOW), otel=True)
    send(sidecar, {"stream": True})
    found = spans(sidecar, kept)
    whole = tree(found)[0]
    assert ASKED in whole[1]
    stages = [("draft", [("check stream", SCORED)]), ("check output", SCORED)]
    assert ("guard", stages) in whole[1]
    assert told(found, POST)["mmguard.first_ms"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_callers_trace_goes_on_upstream(stream: bool, kept: Any, tmp_path: Path) -> None:
    heard: list[httpx.Headers] = []

    def listen(request: httpx.Request) -> httpx.Response:
        heard.append(request.headers)
        return upstream(request)

    sidecar = app(listen, write_policy(tmp_path), otel=True)
    send(sidecar, {"stream": stream}, traceparent=PARENT, tracestate="vendor=1")
    send(sidecar, {"stream": stream}, traceparent="00-nonsense", baggage="word=1")
    found = spans(sidecar, kept)
    calls = [span for span in found if span.name == ASKED[0]]
    first, second = (h["traceparent"].split("-") for h in heard)
    assert first[1:] == [TRACE, f"{calls[0].context.span_id:016x}", "01"]
    assert heard[0]["tracestate"] == "vendor=1"
    outer = next(s for s in found if s.name == POST)
    assert f"{outer.parent.span_id:016x}" == CALLER
    assert second[1] == f"{calls[1].context.trace_id:032x}" != TRACE
    assert "baggage" not in heard[1]


def test_what_is_not_sampled_is_only_passed_on(kept: Any, tmp_path: Path) -> None:
    heard: list[str] = []

    def listen(request: httpx.Request) -> httpx.Response:
        heard.append(request.headers["traceparent"])
        return upstream(request)

    sidecar = app(listen, write_policy(tmp_path), otel=True)
    send(sidecar, {}, traceparent=f"{PARENT[:-1]}0")
    assert spans(sidecar, kept) == []
    assert heard[0].startswith(f"00-{TRACE}-")
    assert heard[0].endswith("-00")


def test_failures_have_kinds(kept: Any, tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path, output=[BROKEN]), otel=True)
    send(sidecar, {}, {"act": "limit"}, {"act": "break"})
    found = spans(sidecar, kept)
    kinds = {s.name: s.attributes["error.type"] for s in found if "error.type" in s.attributes}
    assert kinds == {POST: "502", "guard": "ModelError", ASKED[0]: "429"}
    posts = [s for s in found if s.name == POST]
    assert [s.attributes["http.response.status_code"] for s in posts] == [503, 429, 502]
    assert posts[0].attributes["mmguard.decision"] == "failed"


@pytest.mark.parametrize("act", ["pass", "block", "mend", "break", "limit"])
@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_the_same(act: str, stream: bool, kept: Any, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["rewrite"] if act == "mend" else [])
    body = {"act": act, "stream": stream, "n": 2}
    (plain,) = send(app(upstream, policy), body)
    (traced,) = send(app(upstream, policy, otel=True), body)
    assert (plain.status_code, plain.content) == (traced.status_code, traced.content)


def test_a_caller_that_leaves_leaves_no_span_open(kept: Any, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError

    sidecar = app(slow, write_policy(tmp_path), otel=True)

    async def run() -> None:
        async with calling(sidecar) as caller:
            body = {"model": "up", "messages": [{"role": "user", "content": "hi"}]}
            task = asyncio.ensure_future(caller.post(CHAT, json=body))
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    names = {span.name for span in spans(sidecar, kept)}
    assert {POST, "guard", "draft"} <= names


def test_detectors_alone_are_traced_too(kept: Any, tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path), otel=True)

    async def run() -> None:
        async with calling(sidecar) as caller:
            await caller.post("/v1/moderations", json={"input": ["one", BAD]})
            await caller.get("/healthz")
            await caller.get("/nowhere")

    asyncio.run(run())
    first, *more = tree(spans(sidecar, kept))
    assert first[0] == "POST /v1/moderations"
    assert [name for name, _ in first[1]] == ["guard", "guard"]
    assert more == [("GET other", [])]


SECRETS = st.text("kqxzwKQXZW", min_size=12, max_size=20)


@hypothesis(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SECRETS, st.booleans(), st.sampled_from(["nothing", "raises", "tells", "repair"]))
def test_no_words(kept: Any, tmp_path: Path, secret: str, stream: bool, fails: str) -> None:
    """Whatever fails, and however it says so."""

    def score(sample: Sample) -> Finding:
        if fails == "raises":
            raise ValueError(secret)
        error = f"{secret}: {secret}" if fails == "tells" else ""
        return Finding("harm", 0.9, secret, reason=secret, error=error)

    def leaky(request: httpx.Request) -> httpx.Response:
        if fails == "repair" and b"anew" in request.content:
            return httpx.Response(500, json={"error": {"message": secret}})
        said = {"content": secret, "vendor": secret}
        if stream:
            return httpx.Response(200, stream=Cuts([streamed([said])]))
        return httpx.Response(200, json=completion(said, model=secret))

    kept.clear()
    detectors = {"harm": ScriptedDetector(score, name="harm", thresholds=WORDS)}
    policy = str(write_policy(tmp_path, repair=["caption", "rewrite"]))
    known = Settings(upstream="http://up/v1", policy=policy, otel=True)
    sidecar = make_app(known, detectors, atransport=httpx.MockTransport(leaky))
    content = [{"type": "text", "text": secret}, {"type": secret, secret: secret}]
    body = {"model": secret, "user": secret, "stream": stream}
    send(sidecar, body | {"messages": [{"role": "user", "content": secret}]}, baggage=f"a={secret}")
    send(sidecar, body | {"messages": [{"role": "user", "content": content}]})
    send(sidecar, {"n": secret}, **{"x-request-id": f"{secret} {secret}"})
    found = spans(sidecar, kept)
    assert len(found) > 6
    assert not any(secret in span.to_json() for span in found)


# -- settings, and a collector ------------------------------------------------------


def test_settings() -> None:
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
    flags = {"upstream": "http://up"}
    assert not load_settings(None, flags, {}).otel
    assert load_settings(None, flags, collector).otel
    assert load_settings(None, flags, {"MMGUARD_OTEL": "true"}).otel
    assert not load_settings(None, flags, {**collector, "MMGUARD_OTEL": "false"}).otel


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmguard.server.traces", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtra, match=r"mmguard\[otel\]"):
        app(upstream, write_policy(tmp_path), otel=True)


OFF = """
import sys
from pathlib import Path
from tests.test_metrics import send, upstream
from tests.upstream import app, write_policy
(answer,) = send(app(upstream, write_policy(Path(sys.argv[1]))), {})
assert answer.status_code == 200
print([n for n in sys.modules if n == "mmguard.server.traces" or n.startswith("opentelemetry.sdk")])
"""


def test_nothing_is_imported_where_it_is_off(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    asked = [sys.executable, "-c", OFF, str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_stop_does_not_wait_for_a_collector_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()

    class Away(sdk.InMemorySpanExporter):  # type: ignore[name-defined,misc]  # imported by name
        def export(self, spans: Any) -> Any:
            back.wait(10)
            return super().export(spans)

    monkeypatch.setattr("mmguard.server.traces.open_exporter", Away)
    monkeypatch.setattr("mmguard.server.traces.STOP", 0.2)
    sidecar = app(upstream, write_policy(tmp_path), otel=True)
    assert send(sidecar, {})[0].status_code == 200
    start = time.perf_counter()
    sidecar.state.sidecar.tracing.close()
    assert time.perf_counter() - start < 2
    back.set()


class Collector(BaseHTTPRequestHandler):
    """Takes what is posted, as OTLP's collector does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append((self.path, body))  # type: ignore[attr-defined]  # set below
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    heard: list[tuple[str, bytes]] = []
    server.heard = heard  # type: ignore[attr-defined]  # read by `Collector`
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", place)
    yield heard
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_collector_gets_them_by_the_stop(
    collector: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    assert load_settings(None, {"upstream": "http://up"}).otel
    with served(app(upstream, write_policy(tmp_path), otel=True)) as url:
        body = json.dumps({"model": "up", "messages": [{"role": "user", "content": "hi"}]})
        assert httpx.post(f"{url}/chat/completions", content=body).status_code == 200
    ((path, data),) = collector
    assert path == "/v1/traces"
    (sent,) = ExportTraceServiceRequest.FromString(data).resource_spans
    named = {a.key: a.value.string_value for a in sent.resource.attributes}
    assert named["service.name"] == "mmguard"
    names = {span.name for scope in sent.scope_spans for span in scope.spans}
    assert {POST, "guard", "draft", "check output", "score harm", ASKED[0]} == names
