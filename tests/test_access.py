"""Request ids, and the line of JSON that each request leaves."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis, strategies as st

from mmguard.cli.serve import tell_access
from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from mmguard.server.visit import identify
from mmguard.types import Finding, Sample
from tests.test_metrics import CHAT, scrape, send, upstream
from tests.upstream import Cuts, app, completion, streamed, write_policy
from tests.world import WORDS

# -- ids and lines ------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("act", ["pass", "break"])
def test_the_callers_id_comes_back(stream: bool, act: str, tmp_path: Path) -> None:
    sidecar = app(upstream, write_policy(tmp_path))
    (answer,) = send(sidecar, {"stream": stream, "act": act}, **{"x-request-id": "mine-7"})
    assert answer.headers["x-request-id"] == "mine-7"
    one, other = send(sidecar, {}, {})
    assert one.headers["x-request-id"] != other.headers["x-request-id"]


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "é", "a\nb"])
def test_what_is_no_id_is_replaced(given: str | None) -> None:
    assert identify(given) != given
    assert len(identify(given)) == 32


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "mmguard.server.access"):
        yield caplog


def test_a_line_for_each_request(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    sidecar = app(upstream, write_policy(tmp_path))
    send(sidecar, {}, {"stream": True, "act": "block"}, {"n": 0}, **{"x-request-id": "mine"})
    told = [json.loads(r.message) for r in lines.records if r.name == "mmguard.server.access"]
    (tag,) = {policy.tag for policy in sidecar.state.sidecar.policies.values()}
    assert [(t["status"], t["decision"], t["choices"]) for t in told] == [
        (200, "pass", 1),
        (200, "block", 1),
        (400, "refused", 0),
    ]
    assert {(t["request"], t["route"], t["policy"]) for t in told} == {("mine", CHAT, tag)}
    assert told[0]["first_ms"] is None
    assert told[1]["ms"] >= told[1]["first_ms"] >= told[1]["guard_ms"] > 0


def test_the_command_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("mmguard.server.access")
    before = log.handlers[:], log.level, log.propagate
    try:
        tell_access()
        send(app(upstream, write_policy(tmp_path)), {})
    finally:
        log.handlers[:], log.level, log.propagate = before
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["decision"] == "pass"


SECRETS = st.text("kqxzwKQXZW", min_size=12, max_size=20)


@hypothesis(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SECRETS, st.booleans(), st.booleans())
def test_no_words_in_metrics_logs_or_audit(
    tmp_path: Path, lines: pytest.LogCaptureFixture, secret: str, stream: bool, fails: bool
) -> None:
    def score(sample: Sample) -> Finding:
        if fails:
            raise ValueError(secret)
        return Finding("harm", 0.9, secret, reason=secret)

    def leaky(request: httpx.Request) -> httpx.Response:
        said = {"content": secret, "vendor": secret}
        if stream:
            frames = streamed([said]).split(b"\n\n")
            if fails:
                frames[2:] = [f'data: {{"error": "{secret}"}}'.encode(), b""]
            return httpx.Response(200, stream=Cuts([b"\n\n".join(frames)]))
        return httpx.Response(200, json=completion(said, model=secret))

    lines.clear()
    for path in tmp_path.glob("a.db*"):
        path.unlink()
    detectors = {"harm": ScriptedDetector(score, name="harm", thresholds=WORDS)}
    known = Settings(
        upstream="http://up/v1",
        policy=str(write_policy(tmp_path)),
        audit={"path": tmp_path / "a.db"},  # type: ignore[arg-type]  # pydantic reads it
    )
    sidecar = make_app(known, detectors, atransport=httpx.MockTransport(leaky))
    content = [{"type": "text", "text": secret}, {"type": secret, secret: secret}]
    body = {"model": secret, "user": secret, "stream": stream}
    send(sidecar, body | {"messages": [{"role": "user", "content": secret}]})
    send(sidecar, body | {"messages": [{"role": "user", "content": content}]})
    send(sidecar, {"n": secret}, **{"x-request-id": f"{secret} {secret}"})
    sidecar.state.sidecar.watch.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("a.db*"))
    assert kept
    assert secret.encode() not in kept
    assert secret not in scrape(sidecar)
    own = [r.getMessage() for r in lines.records if r.levelno > logging.DEBUG]
    assert own
    assert not any(secret in line for line in own)
