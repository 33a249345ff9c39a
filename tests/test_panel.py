"""The operator's page without a browser: who may ask, what is told, and where nothing goes."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from mmguard.errors import InputError
from mmguard.policy import Policy
from mmguard.server.panel import SHIELD, answer
from mmguard.server.pulse import SECONDS, SLOTS, Pulse, merge, quantile
from mmguard.server.settings import load_settings
from mmguard.types import Call, Finding, Guarded, Reply
from tests.upstream import Json, app, completion, write_policy
from tests.world import BAD, PICTURE

KEY = "an-operators-own-key"
BEARER = {"authorization": f"Bearer {KEY}"}
DRAFT = f"{BAD} kqxzw"


def mend(request: httpx.Request) -> httpx.Response:
    """A harmful draft, and whatever is asked about it harmless."""
    anew = "anew" in request.content.decode()
    return httpx.Response(200, json=completion({"content": "mended" if anew else DRAFT}))


def sidecar(folder: Path, handler: Callable[..., Any] = mend, **settings: Any) -> FastAPI:
    policy = write_policy(folder, repair=["rewrite"])
    return app(handler, policy, **{"operator_key": KEY, **settings})


def call(served: FastAPI, *asked: tuple[str, Json | None], **more: Any) -> list[httpx.Response]:
    """The answers to GETs, and with a body to POSTs, under the operator's key."""
    headers = more.get("headers", BEARER)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://side", headers=headers
        ) as caller:
            return [
                await (
                    caller.get(path)
                    if body is None
                    else caller.post(path, content=json.dumps(body))
                )
                for path, body in asked
            ]

    return asyncio.run(run())


def one(served: FastAPI, path: str, body: Json | None = None, **more: Any) -> httpx.Response:
    return call(served, (path, body), **more)[0]


# -- who may ask ------------------------------------------------------------------------


def test_without_a_key_there_is_no_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = sidecar(tmp_path, operator_key=None)
    unknown = one(served, "/nothing")
    found = call(served, *[(path, None) for path in ("/ui", "/ui", "/ui/page.js", "/ui/api/state")])
    assert {(r.status_code, r.content) for r in found} == {(404, unknown.content)}
    hints = [record.message for record in caplog.records if "operator_key" in record.message]
    assert len(hints) == 1


@pytest.mark.parametrize("given", ["", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "é"])
def test_nothing_is_told_without_the_key(given: str, tmp_path: Path) -> None:
    served = sidecar(tmp_path, audit={"path": tmp_path / "a.db"})
    headers = {"authorization": given.encode()}
    paths = {p: how for p, how in served.openapi()["paths"].items() if "/ui/api" in p}
    assert len(paths) >= 9
    for path, how in paths.items():
        body: Json | None = {} if "post" in how else None
        answer = one(served, path.replace("{place}", "1"), body, headers=headers)
        assert answer.status_code == 401
        assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("path", ["/ui", "/ui/page.css", "/ui/page.js", "/ui/api/state", "/ui/no"])
def test_a_browser_keeps_it_to_itself(path: str, tmp_path: Path) -> None:
    for headers in (BEARER, {}):
        answer = one(sidecar(tmp_path), path, headers=headers)
        assert {name: answer.headers[name] for name in SHIELD} == SHIELD
    assert "unsafe" not in SHIELD["content-security-policy"]


def test_other_routes_keep_their_headers(tmp_path: Path) -> None:
    assert "content-security-policy" not in one(sidecar(tmp_path), "/healthz").headers


def test_the_page_holds_no_script_and_no_style_of_its_own(tmp_path: Path) -> None:
    page = one(sidecar(tmp_path), "/ui", headers={}).text
    script = one(sidecar(tmp_path), "/ui/page.js", headers={}).text
    assert page.count("<script") == page.count('<script src="ui/page.js"') == 1
    assert "style=" not in page
    assert "<style" not in page
    assert "//" not in page.replace("<!doctype html>", "")
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_a_short_key_is_refused_and_not_repeated() -> None:
    known = {"upstream": "http://up/v1", "operator_key": "short-secret"}
    with pytest.raises(InputError, match="operator_key") as raised:
        load_settings(None, known, {})
    assert "short-secret" not in str(raised.value)
    environment = {"MMGUARD_OPERATOR_KEY": KEY, "MMGUARD_UPSTREAM": "http://up/v1"}
    settings = load_settings(None, {}, environment)
    assert settings.operates(f"Bearer {KEY}")
    assert KEY not in repr(settings)


def test_no_key_operates_nothing() -> None:
    settings = load_settings(None, {"upstream": "http://up/v1"}, {})
    assert not settings.operates("")
    assert not settings.operates("Bearer ")


# -- the playground -----------------------------------------------------------------------

TRY = {"question": "what is this?", "policy": ""}


def attempt(served: FastAPI, **more: Any) -> httpx.Response:
    name = served.state.sidecar.settings.policy
    return one(served, "/ui/api/try", {**TRY, "policy": name, **more})


def picture(data: bytes = PICTURE.data) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_question_goes_through_the_flow(tmp_path: Path) -> None:
    served = sidecar(tmp_path)
    found = attempt(served, picture=picture()).json()
    assert (found["action"], found["step"], found["decision"]) == ("repair", "rewrite", "repair")
    detail = found["detail"]
    assert detail["answer"]["text"] == "mended"
    draft = detail["calls"][0]
    assert (draft["stage"], draft["reply"]["text"]) == ("draft", DRAFT)
    assert draft["ms"] > 0
    assert [f["stage"] for f in found["trail"]] == ["output", "rewrite"]
    assert detail["coverage"]["images_total"] == 1
    assert found["prompt"] == 7 * len(detail["calls"])
    body = {"model": "up", "messages": [{"role": "user", "content": "what is this?"}]}
    assert (
        one(served, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        == (detail["answer"]["text"])
    )


def test_a_draft_is_written_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    audit = {"path": tmp_path / "a.db", "texts": True}
    served = sidecar(tmp_path, audit=audit)
    assert DRAFT in attempt(served).text
    watch = served.state.sidecar.watch
    watch.close()
    assert watch.audit.written == 0
    assert b"mmguard_choices_total{" not in one(served, "/metrics").content
    assert not watch.pulse.slots
    told = "".join(f"{record.getMessage()}{record.args}" for record in caplog.records)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "kqxzw" not in told
    assert b"kqxzw" not in kept


@pytest.mark.parametrize(
    ("own", "given", "seen"),
    [("", "", None), ("", "theirs", "Bearer theirs"), ("ours", "theirs", "Bearer ours")],
)
def test_the_operators_key_stays_here(
    own: str, given: str, seen: str | None, tmp_path: Path
) -> None:
    heads: list[httpx.Headers] = []

    def upstream(request: httpx.Request) -> httpx.Response:
        heads.append(request.headers)
        return httpx.Response(200, json=completion({"content": "fine"}))

    served = sidecar(tmp_path, upstream, upstream_key=own)
    assert attempt(served, key=given).json()["action"] == "pass"
    one(served, "/ui/api/models")
    assert heads[0].get("authorization") == seen
    assert not [head for head in heads if KEY in str(head.multi_items())]


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"policy": "no-such"}, 400, "not in use any more"),
        ({"policy": "../balanced"}, 400, "not in use any more"),
        ({"question": ""}, 400, "question"),
        ({"picture": picture(b"none")}, 400, "picture"),
        ({"picture": "http://169.254.0.1/x"}, 400, "is not fetched"),
        ({"n": 3}, 400, "n: Extra"),
    ],
)
def test_what_cannot_be_tried_says_why(
    fields: Json, status: int, told: str, tmp_path: Path
) -> None:
    answer = attempt(sidecar(tmp_path), **fields)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


def test_an_upstream_that_refuses_is_told(tmp_path: Path) -> None:
    def upstream(request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, json={"error": {"message": "slow down"}})

    answer = attempt(sidecar(tmp_path, upstream))
    assert (answer.status_code, answer.json()["error"]["message"]) == (429, "slow down")


def test_the_playground_takes_room_too(tmp_path: Path) -> None:
    served = sidecar(tmp_path, in_flight=1, queue=0)
    served.state.sidecar.gate.places = asyncio.Semaphore(0)
    assert attempt(served).status_code == 429


def test_presets_may_be_tried(tmp_path: Path) -> None:
    assert attempt(sidecar(tmp_path), policy="off").json()["detail"]["answer"]["text"] == DRAFT


def test_sentences_are_scored_one_by_one(tmp_path: Path) -> None:
    served = sidecar(tmp_path)
    body = {"policy": served.state.sidecar.settings.policy, "text": f"It is fine. It is {BAD}!"}
    [first, second] = one(served, "/ui/api/sentences", body).json()["sentences"]
    assert (first["action"], second["action"]) == ("pass", "repair")
    assert (second["start"], second["text"]) == (12, f"It is {BAD}!")
    assert (first["score"], second["score"], second["detector"]) == (0.1, 0.9, "harm")
    tagged = next(iter(served.state.sidecar.policies.values())).tag
    assert one(served, "/ui/api/sentences", {**body, "policy": tagged}).status_code == 200
    assert one(served, "/ui/api/sentences", {**body, "policy": "off"}).status_code == 400


# -- policies and state ---------------------------------------------------------------------


def test_policies_are_told_as_they_are_used(tmp_path: Path) -> None:
    keys = {"team": {"key": "a-long-secret", "policy": "off"}, "all": {"key": "another-one"}}
    served = sidecar(tmp_path, keys=keys)
    own = served.state.sidecar.settings.policy
    told = {p["name"]: p for p in one(served, "/ui/api/policies").json()["policies"]}
    assert next(iter(told)) == own
    assert (
        Policy.model_validate(yaml.safe_load(told[own]["yaml"]))
        == (served.state.sidecar.policies[own])
    )
    assert (told["off"]["users"], told[own]["users"]) == (["team"], ["all"])
    assert told["strict"]["used"] is False
    assert "a-long-secret" not in one(served, "/ui/api/state").text


def test_without_an_audit_it_says_so(tmp_path: Path) -> None:
    served = sidecar(tmp_path)
    assert one(served, "/ui/api/state").json()["audit"] is None
    answer = one(served, "/ui/api/decisions", {})
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "no_audit")
    assert "audit.path" in answer.json()["error"]["message"]


def test_a_decision_is_found_and_opened(tmp_path: Path) -> None:
    audit = {"path": tmp_path / "a.db", "texts": True, "pictures": True}
    served = sidecar(tmp_path, audit=audit)
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": picture()}},
    ]
    asked = {"model": "up", "messages": [{"role": "user", "content": parts}]}
    call(served, ("/v1/chat/completions", asked))
    served.state.sidecar.watch.close()
    [row] = one(served, "/ui/api/decisions", {"action": "repair"}).json()["rows"]
    assert (row["excerpt"], row["pictures"]) == ("what is this?", 1)
    assert (row["blamed"]["detector"], row["blamed"]["score"]) == ("harm", 0.9)
    opened = one(served, f"/ui/api/decisions/{row['id']}").json()
    assert opened["detail"]["calls"][0]["reply"]["text"] == DRAFT
    assert opened["detail"]["calls"][0]["ms"] > 0
    assert opened["detail"]["thumbnails"][0].startswith("data:image/jpeg;base64,")
    assert one(served, "/ui/api/names").json()["step"] == ["rewrite"]
    assert one(served, "/ui/api/decisions/99").status_code == 404
    assert one(served, f"/ui/api/decisions/{2**63}").status_code == 422


def test_half_a_character_is_told_too() -> None:
    assert json.loads(bytes(answer({"text": "half \ud800"}).body)) == {"text": "half \ud800"}


@pytest.mark.parametrize(
    ("query", "told"), [({"action": "no"}, "action"), ({"x": 1}, "x"), ({"limit": 999}, "limit")]
)
def test_a_bad_query_is_told(query: Json, told: str, tmp_path: Path) -> None:
    served = sidecar(tmp_path, audit={"path": tmp_path / "a.db"})
    answer = one(served, "/ui/api/decisions", query)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    served = sidecar(tmp_path, audit={"path": tmp_path / "a.db"})
    served.state.sidecar.watch.close()
    for path in tmp_path.glob("a.db*"):
        path.unlink()
    answer = one(served, "/ui/api/decisions", {})
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "audit_unreadable")
    assert not (tmp_path / "a.db").exists()


# -- load -------------------------------------------------------------------------------------


def test_quantiles_are_within_five_percent() -> None:
    pulse = Pulse(lambda: 0)
    for ms in range(1, 1001):
        pulse.slot().spend("whole", ms)
    bins = merge(pulse.slots)["whole"]
    for share in (0.05, 0.5, 0.95):
        assert quantile(bins, share) == pytest.approx(1000 * share, rel=0.055)


def test_an_hour_is_kept_and_no_more() -> None:
    now = [0.0]
    pulse = Pulse(lambda: 3, lambda: now[0])
    for _ in range(2 * SLOTS):
        now[0] += SECONDS
        pulse.slot().decisions["pass"] += 1
    assert len(pulse.slots) == SLOTS
    assert sum(slot.decisions["pass"] for slot in pulse.since(900)) == 900 // SECONDS + 1
    assert pulse.slots[-1].peak == 3


def test_load_counts_what_was_sent(tmp_path: Path) -> None:
    served = sidecar(tmp_path, audit={"path": tmp_path / "a.db"})
    body = {"model": "up", "messages": [{"role": "user", "content": "x"}]}
    paths = [("/v1/chat/completions", body)] * 3 + [("/v1/chat/completions", {"n": 0})]
    call(served, *paths, ("/v1/models", None))
    served.state.sidecar.watch.close()
    hour, day = (one(served, f"/ui/api/load?seconds={s}").json() for s in (3600, 86400))
    assert (hour["source"], day["source"]) == ("memory", "audit")
    assert sums(hour) == {"repair": 3, "refused": 1}
    assert sums(day) == {"repair": 3}
    peaks = [point.get("peak") for point in hour["points"]]
    assert (peaks[0], max(filter(None, peaks))) == (None, 1)
    stages = {"whole", "checks output", "checks rewrite", "model draft", "model plan"}
    for load in (hour, day):
        found = {stage["stage"]: stage for stage in load["stages"]}
        assert stages <= set(found)
        assert found["model draft"]["n"] == 3
        assert all(0 < f["p50"] <= f["p95"] for f in found.values())
    assert one(sidecar(tmp_path), "/ui/api/load?seconds=nan").status_code == 200


def sums(load: Json) -> dict[str, int]:
    found: dict[str, int] = {}
    for point in load["points"]:
        for kind, n in point["decisions"].items():
            found[kind] = found.get(kind, 0) + n
    return found


def test_findings_of_a_stage_run_at_once() -> None:
    from mmguard.server.pulse import spent

    trail = tuple(Finding("d", 0.1, stage="output", ms=ms) for ms in (3.0, 5.0))
    calls = tuple(Call("resample", "target", Reply("x", ms=ms)) for ms in (3.0, 5.0))
    guarded = Guarded("x", "pass", "answer", trail=trail, calls=calls)
    assert spent(guarded) == {"checks output": 5.0, "model resample": 8.0}
