"""OpenAI's responses: what passes is untouched, what does not never leaves, in their own form."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from tests.replies import (
    ASK,
    BLOCK,
    DETAILS,
    USAGE,
    WINDOW,
    call,
    end,
    frame,
    listen,
    message,
    picture,
    post,
    refused,
    response,
    says,
    spoken,
    stream,
    text,
    thought,
    well_formed,
    words,
)
from tests.test_audit import rows, until
from tests.upstream import Json, client, write_policy
from tests.world import BAD

# -- whole --------------------------------------------------------------------


def test_what_passes_is_byte_for_byte_the_upstreams(tmp_path: Path) -> None:
    body = response(thought("hm"), words("fine"), call('{"a": 1}'), vendor=[1])
    answer = post(says(body), write_policy(tmp_path))
    assert answer.content == json.dumps(body, indent=1).encode()
    assert answer.headers["x-mmguard-decision"] == "pass"


def test_the_caller_s_body_goes_up(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=response(words("fine")))

    turns = [{"role": "user", "content": [{"type": "input_text", "text": "x"}, picture()]}]
    body = {**ASK, "input": turns, "vendor": {"x": [1]}, "previous_response_id": "resp_1"}
    data = json.dumps(body, indent=3).encode()

    async def run() -> None:
        async with client(handler, write_policy(tmp_path)) as caller:
            told = {"authorization": "Bearer sk-caller", "content-type": "application/json"}
            answer = await caller.post("responses", content=data, headers=told)
            assert answer.status_code == 200

    asyncio.run(run())
    assert seen[0].content == data
    assert seen[0].headers["authorization"] == "Bearer sk-caller"


SEARCH = {"id": "ws", "type": "web_search_call", "status": "completed"}
CODE = {"id": "c", "type": "code_interpreter_call", "code": ""}
FIELDS: dict[str, Json] = {
    "text": words(f"a {BAD} word"),
    "refusal": message({"type": "refusal", "refusal": BAD}),
    "summary": thought(BAD),
    "thought": thought("", BAD),
    "tool": call("{}", BAD),
    "arguments": call(f'{{"{BAD}": 1}}'),
    "citation": message(text("x", annotations=[{"type": "url_citation", "title": BAD}])),
    "search": {**SEARCH, "action": {"type": "search", "query": "x", "queries": ["y", BAD]}},
    "found": {"type": "file_search_call", "id": "f", "results": [{"attributes": {BAD: 1}}]},
    "code": {**CODE, "code": BAD, "outputs": None},
    "logs": {
        "type": "code_interpreter_call",
        "code": "",
        "outputs": [{"type": "logs", "logs": BAD}],
    },
    "shell": {"type": "local_shell_call", "action": {"type": "exec", "env": {BAD: ""}}},
    "mcp": {"type": "mcp_call", "id": "m", "name": "x", "arguments": "{}", "output": BAD},
    "schema": {"type": "mcp_list_tools", "tools": [{"name": "x", "input_schema": {BAD: 1}}]},
    "unknown": {"type": "vendor", "deep": {"said": [BAD]}},
    "status": {**message(text("x")), "status": {"x": BAD}},
}
BESIDE: dict[str, Json] = {
    "vendor": {"vendor": {"deep": BAD}},
    "error": {"status": "failed", "error": {"code": "server_error", "message": BAD}},
    "instructions": {"instructions": BAD},
    "tools": {"tools": [{"type": "function", "name": "x", "description": BAD}]},
    "role": {"role": {"x": BAD}},
}


@pytest.mark.parametrize("item", FIELDS.values(), ids=FIELDS)
def test_no_field_is_overlooked(item: Json, tmp_path: Path) -> None:
    body = response(words("fine"), {"id": "x", **item})
    answer = post(says(body), write_policy(tmp_path, **BLOCK))
    assert BAD not in answer.text
    assert answer.json()["incomplete_details"] == {"reason": "content_filter"}
    found, events = listen(says(stream(*body["output"])), write_policy(tmp_path, **BLOCK))
    assert BAD.encode() not in found
    well_formed(events)
    assert end(events) == ("incomplete", "content_filter")


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_nothing_beside_the_items_is_overlooked(beside: Json, tmp_path: Path) -> None:
    answer = post(says(response(words("fine"), **beside)), write_policy(tmp_path, **BLOCK))
    assert BAD not in answer.text
    assert answer.json()["incomplete_details"] == {"reason": "content_filter"}
    data = stream(words("fine"), end=beside)
    found, _ = listen(says(data), write_policy(tmp_path, **BLOCK))
    assert BAD.encode() not in found


def test_what_a_server_repeats_of_the_request_is_no_answer(tmp_path: Path) -> None:
    tool = {"type": "function", "name": "x", "description": f"never say {BAD}"}
    asked: Json = {"instructions": f"never say {BAD}", "tools": [tool], "metadata": {"a": BAD}}
    repeated = {**asked, "tools": [{**tool, "strict": True, "search_context_size": "medium"}]}
    body = response(words("fine"), **repeated)
    answer = post(says(body), write_policy(tmp_path, **BLOCK), **asked)
    assert answer.content == json.dumps(body, indent=1).encode()


def test_a_withheld_answer_field_by_field(tmp_path: Path) -> None:
    handler = says(response(thought("hm"), words(BAD), call("{}")))
    answer = post(handler, write_policy(tmp_path, **BLOCK), instructions="be brief")
    assert answer.status_code == 200
    assert answer.headers["x-mmguard-decision"] == "block"
    made = answer.json()
    assert made.pop("mmguard")["action"] == "block"
    assert made.pop("id").startswith("resp_mmguard_")
    [item] = made.pop("output")
    assert item.pop("id").startswith("msg_")
    refusal = {"type": "refusal", "refusal": "<no>"}
    told = {"type": "message", "role": "assistant", "status": "incomplete"}
    assert item == {**told, "content": [text("<no>"), refusal]}
    assert made == {
        "object": "response",
        "created_at": 1,
        "model": "up-1",
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": "content_filter"},
        "instructions": "be brief",
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": USAGE,
    }


FORMAT = {"format": {"type": "json_schema", "name": "x", "schema": {}}}


def test_only_people_read_a_refusal_as_text(tmp_path: Path) -> None:
    handler, policy = says(response(words(BAD))), write_policy(tmp_path, **BLOCK)
    refusal = [{"type": "refusal", "refusal": "<no>"}]
    asked = post(handler, policy, text=FORMAT).json()
    assert asked["output"][0]["content"] == refusal
    unset = post(handler, policy, {"refusal_in_content": False}).json()
    assert unset["output"][0]["content"] == refusal
    _, events = listen(says(stream(words(BAD))), policy, text=FORMAT)
    well_formed(events)
    assert (spoken(events), refused(events)) == ("", "<no>")


def test_an_answer_is_mended_by_the_same_server(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    answer = post(says(response(thought("hm"), words(BAD), call("{}"))), policy).json()
    [item] = answer["output"]
    assert (item["type"], item["content"]) == ("message", [text("mended")])
    assert (answer["status"], answer["incomplete_details"]) == ("completed", None)
    spent = {"input_tokens": 14, "output_tokens": 10, "total_tokens": 24}
    assert answer["usage"] == {**DETAILS, **spent}
    assert answer["mmguard"]["step"] == "detoxify"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_with_eyes_closed(streamed: bool, tmp_path: Path) -> None:
    seen: list[Json] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        seen.append(asked)
        if len(seen) == 1:
            body = stream(words(BAD)) if streamed else json.dumps(response(words(BAD))).encode()
            return httpx.Response(200, content=body)
        said = "a red square" if '"input_image"' in json.dumps(asked) else "It is red."
        return httpx.Response(200, json=response(thought(BAD), words(said)))

    turn = [{"role": "user", "content": [picture(), {"type": "input_text", "text": "which?"}]}]
    policy = write_policy(tmp_path, repair=["caption"])
    answer = post(handler, policy, input=turn, instructions="be brief", stream=streamed)
    assert "It is red." in answer.text
    assert BAD not in answer.text
    draft, look, closed = seen
    assert draft["input"] == turn
    assert look["input"][0]["content"][0] == picture()
    assert "input_image" not in json.dumps(closed)
    assert [one["role"] for one in closed["input"]] == ["system", "user"]
    assert {one.get("max_output_tokens") for one in (look, closed)} == {128, 50}


# -- failures -----------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_the_upstreams_refusal_keeps_status_and_body(streamed: bool, tmp_path: Path) -> None:
    body = {"error": {"message": "slow down", "type": "requests", "param": None, "code": "x"}}
    answer = post(says(body, 429), write_policy(tmp_path), stream=streamed)
    assert (answer.status_code, answer.json()) == (429, body)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_failed_detector_is_unavailable(streamed: bool, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "broken", "action": "block"}])
    body: Json | bytes = stream(words("secret")) if streamed else response(words("secret"))
    answer = post(says(body), policy, stream=streamed)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["type"] == "guard_unavailable"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_failed_upstream_passes_as_it_came(streamed: bool, tmp_path: Path) -> None:
    failed = {"status": "failed", "error": {"code": "server_error", "message": "no luck"}}
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    for ended in (failed, cut):
        body: Json | bytes = stream(words("It is"), end=ended)
        if not streamed:
            body = response(words("It is"), **ended)
        answer = post(says(body), write_policy(tmp_path), stream=streamed)
        sent = body if isinstance(body, bytes) else json.dumps(body, indent=1).encode()
        assert answer.content == sent


def test_a_stream_that_breaks_after_it_began_ends_with_an_error(tmp_path: Path) -> None:
    data = stream(words("It is a red square on white, and so on."))
    half = data[: data.index(b"square")].rpartition(b"event:")[0]
    broken = frame({"type": "error", "code": "x", "message": "secret", "sequence_number": 9})
    for cut_off in (half, half + broken):
        found, events = listen(says(cut_off), write_policy(tmp_path, **WINDOW))
        assert spoken(events).startswith("It")
        told = {"code": None, "message": "the upstream failed", "param": None}
        assert events[-1] == {
            "type": "error",
            **told,
            "sequence_number": 0,
            "error": {**told, "type": "upstream_error"},
        }
        assert b"secret" not in found


def test_a_chat_s_answer_is_no_response(tmp_path: Path) -> None:
    answer = post(says({"choices": []}), write_policy(tmp_path))
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")


def test_what_is_stored_is_not_served(tmp_path: Path) -> None:
    async def run() -> list[httpx.Response]:
        async with client(says(response()), write_policy(tmp_path)) as caller:
            paths = ("resp_up", "resp_up/input_items", "resp_up/cancel")
            return [await caller.get(f"responses/{path}") for path in paths]

    for answer in asyncio.run(run()):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_served")


# -- the record ---------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_every_response_is_recorded_and_counted(streamed: bool, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    handler = says(stream(words(f"a {BAD} word")) if streamed else response(words(BAD)))

    async def run() -> str:
        kept = {"path": str(path)}
        async with client(handler, write_policy(tmp_path), audit=kept) as caller:
            asked = {**ASK, "stream": streamed}
            answer = await caller.post("responses", json=asked, headers={"x-request-id": "mine"})
            assert answer.headers["x-request-id"] == "mine"
            return (await caller.get("http://side/metrics")).text

    metrics = asyncio.run(run())
    until(lambda: path.exists() and bool(rows(path)))
    [row] = rows(path)
    assert (row["action"], row["route"], row["request"]) == ("block", "/v1/responses", "mine")
    assert (row["prompt"], row["completion"]) == (7, 5)
    assert 'route="/v1/responses",status="200"' in metrics
    assert 'mmguard_model_tokens_total{kind="prompt",stage="draft"} 7.0' in metrics
