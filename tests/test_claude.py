"""Anthropic's messages: what passes is untouched, what does not never leaves, in their own form."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mmguard.server import blocks
from mmguard.types import Image, Opaque, Text
from tests.talks import (
    ASK,
    BLOCK,
    HEAD,
    USAGE,
    WINDOW,
    ends,
    event,
    listen,
    message,
    picture,
    post,
    says,
    spoken,
    stream,
    talk,
    well_formed,
    words,
)
from tests.test_audit import rows, until
from tests.upstream import Json, client, write_policy
from tests.world import BAD, png

# -- whole --------------------------------------------------------------------


def test_what_passes_is_byte_for_byte_the_upstreams(tmp_path: Path) -> None:
    body = message(words("fine"), vendor=[1])
    answer = post(says(body), write_policy(tmp_path))
    assert answer.content == json.dumps(body, indent=1).encode()
    assert answer.headers["x-mmguard-decision"] == "pass"


def test_the_caller_s_body_and_headers_go_up(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=json.dumps(message(words("fine"))))

    turns = [{"role": "user", "content": [words("x"), picture()]}]
    body = {**ASK, "messages": turns, "system": [words("be brief")], "vendor": {"x": [1]}}

    async def call(headers: dict[str, str], **known: Any) -> None:
        async with client(handler, write_policy(tmp_path), **known) as caller:
            answer = await caller.post("messages", json=body, headers=headers)
            assert answer.status_code == 200

    asyncio.run(call({"x-api-key": "sk-caller", "anthropic-beta": "new"}))
    asyncio.run(call({"x-api-key": "team-key-1"}, keys={"team": {"key": "team-key-1"}}))
    asyncio.run(call({}, upstream_key="up-key"))
    asyncio.run(call({}, upstream_key="sk-ant-api-x"))
    assert [json.loads(request.content) for request in seen] == [body] * 4
    assert seen[0].headers["x-api-key"] == "sk-caller"
    assert seen[0].headers["anthropic-beta"] == "new"
    assert seen[0].headers["anthropic-version"] == "2023-06-01"
    assert "x-api-key" not in seen[1].headers
    assert seen[2].headers["x-api-key"] == "up-key"
    assert seen[2].headers["authorization"] == "Bearer up-key"
    assert seen[3].headers["x-api-key"] == "sk-ant-api-x"
    assert "authorization" not in seen[3].headers


TOOL = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
FIELDS: dict[str, Json] = {
    "text": words(f"a {BAD} word"),
    "thinking": {"type": "thinking", "thinking": BAD, "signature": "x"},
    "tool": {**TOOL, "name": BAD},
    "input": {**TOOL, "input": {"deep": [f"a {BAD}"]}},
    "input's name": {**TOOL, "input": {BAD: 1}},
    "citation": {**words("fine"), "citations": [{"type": "x", "cited_text": BAD}]},
    "unknown": {"type": "vendor", "deep": {"said": [BAD]}},
}


@pytest.mark.parametrize("block", FIELDS.values(), ids=FIELDS)
def test_no_field_is_overlooked(block: Json, tmp_path: Path) -> None:
    body = message(words("fine"), block, container={"id": "c"})
    answer = post(says(body), write_policy(tmp_path, **BLOCK))
    assert BAD not in answer.text
    made = answer.json()
    assert made.pop("mmguard")["action"] == "block"
    ended = {"stop_reason": "refusal", "stop_sequence": None, "usage": USAGE}
    assert made == {**HEAD, "content": [words("<no>")], **ended}
    assert answer.headers["x-mmguard-decision"] == "block"


def test_an_answer_is_mended_by_the_same_server(tmp_path: Path) -> None:
    answer = post(says(message(words(BAD))), write_policy(tmp_path, repair=["detoxify"])).json()
    assert answer["content"] == [words("mended")]
    assert answer["stop_reason"] == "end_turn"
    assert answer["usage"] == {**USAGE, "input_tokens": 14, "output_tokens": 10}


def test_a_request_that_is_blocked_never_goes_up(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    policy = write_policy(tmp_path, **BLOCK, input=[{"detector": "harm", "action": "block"}])
    for body in ({"system": BAD}, {"messages": [{"role": "user", "content": [words(BAD)]}]}):
        answer = post(handler, policy, **body).json()
        assert (answer["model"], answer["content"]) == ("up", [words("<no>")])
        assert answer["stop_reason"] == "refusal"
        _, events = listen(handler, policy, **body)
        well_formed(events)
        assert (spoken(events), ends(events)) == ("<no>", ["refusal"])


# -- reading ------------------------------------------------------------------


def test_every_kind_of_block_is_read() -> None:
    found = picture()
    result: Json = {
        "type": "tool_result",
        "tool_use_id": "1",
        "content": [words("told"), picture()],
    }
    inner = result["content"][1]
    document = {"type": "document", "source": {"type": "base64", "data": ""}}
    turns = [
        {"role": "user", "content": [found, words("look"), document, picture(type="file")]},
        {"role": "assistant", "content": [{**TOOL, "input": {"q": "x"}}]},
        {"role": "user", "content": [result]},
        {"role": "user", "content": "and?"},
    ]
    body = {**ASK, "system": [words("be brief")], "messages": turns}
    known = {id(block): Image(png()) for block in blocks.pictures(body)}
    assert set(known) == {id(found), id(inner)}
    request = blocks.read(body, known)
    roles = [m.role for m in request.messages]
    assert roles == ["system", "user", "assistant", "tool", "user"]
    assert request.text == 'be brief\nlook\nf\n{"q":"x"}\ntold\nand?'
    assert [part.kind for part in request.opaque] == ["document", "image"]
    assert request.options == {"max_tokens": 50}
    back = blocks.write(request, "up")
    assert back["system"] == [words("be brief")]
    assert [turn["role"] for turn in back["messages"]] == ["user", "assistant", "user", "user"]
    assert back["messages"][0]["content"][:2] == [picture(), words("look")]
    assert isinstance(request.messages[1].parts[1], Text)
    assert isinstance(request.messages[1].parts[2], Opaque)


def test_what_nobody_can_read_the_policy_decides(tmp_path: Path) -> None:
    document = {"type": "document", "source": {"type": "base64", "data": ""}}
    asked = [{"role": "user", "content": [document]}]
    handler = says(message(words("fine")))
    answer = post(handler, write_policy(tmp_path), messages=asked)
    assert answer.json()["stop_reason"] == "refusal"
    answer = post(handler, write_policy(tmp_path, unreadable="pass"), messages=asked)
    assert answer.json()["stop_reason"] == "end_turn"


def test_a_picture_by_url_goes_up_as_what_was_checked() -> None:
    linked = picture(type="url", url="https://pictures.test/a.png")
    body = {"messages": [{"role": "user", "content": [linked, {**picture(), "cache_control": 1}]}]}
    known = {id(block): Image(png()) for block in blocks.pictures(body)}
    made = blocks.enclose(body, known)
    assert made["messages"][0]["content"] == [picture(), {**picture(), "cache_control": 1}]


# -- streams ------------------------------------------------------------------

TALK = ["It ", "is a ", "red ", "square ", "on white."]
CALL: tuple[Json, list[Json]] = (
    TOOL,
    [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"a', '": 1}')],
)
THOUGHT: tuple[Json, list[Json]] = (
    {"type": "thinking", "thinking": "", "signature": ""},
    [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "x"}],
)


@pytest.mark.parametrize("fields", [{}, WINDOW, {"mode": "audit"}])
def test_a_stream_that_passes_is_byte_for_byte_the_upstreams(fields: Json, tmp_path: Path) -> None:
    data = stream(THOUGHT, talk(*TALK), CALL)
    found, events = listen(says(data, 200, 3, 50, 51, 400), write_policy(tmp_path, **fields))
    assert found == data
    well_formed(events)


def test_a_harmful_stream_is_refused(tmp_path: Path) -> None:
    data = stream(THOUGHT, talk("a ", BAD, " word"))
    found, events = listen(says(data), write_policy(tmp_path, **BLOCK))
    assert BAD.encode() not in found
    well_formed(events)
    assert (spoken(events), ends(events)) == ("<no>", ["refusal"])
    assert events[0]["message"]["id"] == "msg_up"
    assert events[0]["message"]["usage"]["input_tokens"] == 7


def test_what_has_left_stays_and_the_rest_is_cut(tmp_path: Path) -> None:
    data = stream(talk(*"all is fine here, ", BAD, " and more"), CALL)
    found, events = listen(says(data), write_policy(tmp_path, **BLOCK, **WINDOW))
    assert BAD.encode() not in found
    well_formed(events)
    assert spoken(events).startswith("all is fine")
    assert spoken(events).endswith("<cut>")
    assert ends(events) == ["refusal"]


def test_a_mended_stream(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    _, events = listen(says(stream(talk(BAD))), policy)
    well_formed(events)
    assert (spoken(events), ends(events)) == ("mended", ["end_turn"])
    assert events[-2]["usage"]["output_tokens"] == 6


PIECES = st.lists(st.sampled_from([BAD, "BA", "D", "AD", "B", "x ", "some words", ""]), max_size=6)
KINDS = st.sampled_from(["text", "thinking", "partial_json", "vendor"])


def block(kind: str, pieces: list[str]) -> tuple[Json, list[Json]]:
    made = {"text": "text", "thinking": "thinking", "partial_json": "tool_use"}.get(kind, kind)
    deltas = [{"type": f"{kind}_delta", kind: piece} for piece in pieces]
    return {"type": made}, deltas


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(KINDS, PIECES), min_size=1, max_size=3),
    st.lists(st.integers(0, 5000), max_size=8),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_no_banned_byte_leaves(
    tmp_path: Path, said: Any, ends_at: list[int], window: int, hold: int
) -> None:
    how = {"mode": "window", "window": window, "hold": hold}
    data = stream(*(block(kind, pieces) for kind, pieces in said))
    found, events = listen(says(data, 200, *ends_at), write_policy(tmp_path, **BLOCK, stream=how))
    well_formed(events)
    heard: dict[int, str] = {}
    for told in events:
        if told["type"] == "content_block_delta":
            text = "".join(v for k, v in told["delta"].items() if k != "type")
            heard[told["index"]] = heard.get(told["index"], "") + text
    assert not any(BAD in text for text in heard.values())
    harmful = any(BAD in "".join(pieces) for _, pieces in said)
    assert ends(events) == ["refusal" if harmful else "end_turn"]
    assert harmful or found == data


# -- failures -----------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_the_upstreams_refusal_keeps_status_and_body(wide: bool, tmp_path: Path) -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    answer = post(says(body, 529), write_policy(tmp_path), stream=wide)
    assert (answer.status_code, answer.json()) == (529, body)


@pytest.mark.parametrize("wide", [False, True])
def test_a_failed_detector_is_unavailable(wide: bool, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "broken", "action": "block"}])
    body: Json | bytes = stream(talk("secret")) if wide else message(words("secret"))
    answer = post(says(body), policy, stream=wide)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "api_error"


def test_a_stream_that_breaks_after_it_began_ends_with_an_error(tmp_path: Path) -> None:
    data = stream(talk(*TALK, *TALK))
    broken = event("error", error={"type": "overloaded_error", "message": "secret"})
    for cut_off in (data[:1300], data[:1300].rpartition(b"event")[0] + broken):
        found, events = listen(says(cut_off), write_policy(tmp_path, **WINDOW))
        assert spoken([e for e in events if e["type"] != "error"]).startswith("It")
        assert events[-1]["error"] == {"type": "api_error", "message": "the upstream failed"}
        assert b"secret" not in found


def test_an_error_that_comes_late_is_no_answer(tmp_path: Path) -> None:
    late = event("error", error={"type": "overloaded_error", "message": "secret"})
    data = stream(talk(*TALK)).replace(b"event: message_stop", late + b"event: message_stop")
    answer = post(says(data), write_policy(tmp_path), stream=True)
    assert answer.status_code == 502
    assert "secret" not in answer.text


def test_pictures_have_a_limit(tmp_path: Path) -> None:
    turn = {"role": "user", "content": [picture(), picture()]}

    async def call() -> httpx.Response:
        async with client(says(message()), write_policy(tmp_path), images=1) as caller:
            return await caller.post("messages", json={**ASK, "messages": [turn]})

    answer = asyncio.run(call())
    assert answer.status_code == 400
    assert "send at most 1" in answer.json()["error"]["message"]


BAD_BODIES: list[tuple[Json, str]] = [
    ({"messages": []}, "at least one message"),
    ({"messages": None}, "at least one message"),
    ({"messages": [{"role": "king", "content": "x"}]}, "role user or assistant"),
    ({"messages": [{"role": "user", "content": 1}]}, "text or a list of blocks"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "must be a mapping with a type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "must be a string"),
    ({"messages": [{"role": "user", "content": [picture(type="url")]}]}, "has no picture"),
    ({"messages": [{"role": "user", "content": [picture(type="url", url="/x")]}]}, "data:"),
    ({"system": 5}, "system.content must be text"),
]


@pytest.mark.parametrize(("body", "told"), BAD_BODIES)
def test_bad_bodies_are_told_what_to_fix(body: Json, told: str, tmp_path: Path) -> None:
    answer = post(says(message()), write_policy(tmp_path), **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert told in answer.json()["error"]["message"]


def test_a_chat_s_answer_is_no_message(tmp_path: Path) -> None:
    answer = post(says({"choices": []}), write_policy(tmp_path))
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "api_error"


def test_no_field_of_a_delta_hides_another(tmp_path: Path) -> None:
    delta = {"type": "input_json_delta", "partial_json": BAD, "input": "fine"}
    answer = post(says(stream((TOOL, [delta]))), write_policy(tmp_path), stream=True)
    assert BAD not in answer.text
    assert "refusal" in answer.text


@pytest.mark.parametrize("block", [{}, {"content_block": None}, {"content_block": "x"}])
def test_a_block_of_nothing_is_no_crash(block: Json, tmp_path: Path) -> None:
    odd = event("content_block_start", index=0, **block)
    events = stream(talk("fine")).replace(event("ping"), odd)
    answer = post(says(events), write_policy(tmp_path, **WINDOW), stream=True)
    assert answer.status_code == 200
    assert answer.content == events


# -- the record ---------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_every_message_is_recorded(streamed: bool, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    handler = says(stream(talk(f"a {BAD} word")) if streamed else message(words(BAD)))

    async def call() -> None:
        kept = {"path": str(path)}
        async with client(handler, write_policy(tmp_path), audit=kept) as caller:
            await caller.post("messages", json={**ASK, "stream": streamed})

    asyncio.run(call())
    until(lambda: path.exists() and bool(rows(path)))
    [row] = rows(path)
    assert (row["action"], row["decision"]) == ("block", "block")
    assert (row["prompt"], row["completion"]) == (7, 5)
