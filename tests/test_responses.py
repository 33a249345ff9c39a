"""OpenAI's responses: what passes is untouched, what does not never leaves, in their own form."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

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
    parse,
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
    asked = {"instructions": f"never say {BAD}", "tools": [tool], "metadata": {"a": BAD}}
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


def test_a_request_that_is_blocked_never_goes_up(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    policy = write_policy(tmp_path, **BLOCK, input=[{"detector": "harm", "action": "block"}])
    part = {"type": "input_text", "text": BAD}
    said: list[Json] = [
        {"instructions": BAD},
        {"input": BAD},
        {"input": [{"role": "user", "content": BAD}]},
        {"input": [{"type": "message", "role": "developer", "content": [part]}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": BAD}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [part]}]},
        {"input": [{"type": "shell_call_output", "output": [{"stdout": BAD, "stderr": ""}]}]},
        {"input": [call(f'{{"x": "{BAD}"}}')]},
        {"input": [thought(BAD)]},
        {"input": None, "prompt": {"id": "p", "variables": {"x": BAD}}},
        {"input": [], "prompt": {"id": "p", "variables": {"x": part}}, "previous_response_id": "x"},
    ]
    for body in said:
        answer = post(handler, policy, **{"input": "x", **body}).json()
        assert answer["model"] == "up"
        assert answer["incomplete_details"] == {"reason": "content_filter"}
        _, events = listen(handler, policy, **{"input": "x", **body})
        well_formed(events)
        assert (refused(events), end(events)) == ("<no>", ("incomplete", "content_filter"))


# -- streams ------------------------------------------------------------------

TALK = (thought("hm", "hm hm"), words("It is a red square on white."), call('{"a": 1}'))


@pytest.mark.parametrize("fields", [{}, WINDOW, {"mode": "audit"}])
@pytest.mark.parametrize("tail", [b"", b"data: [DONE]\n\n"])
def test_a_stream_that_passes_is_byte_for_byte_the_upstreams(
    fields: Json, tail: bytes, tmp_path: Path
) -> None:
    data = stream(*TALK, size=3)
    well_formed(parse(data))
    answer = post(
        says(data + tail, 200, 3, 50, 51, 400), write_policy(tmp_path, **fields), stream=True
    )
    assert answer.content == data + tail
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_streamed_and_whole_say_the_same(tmp_path: Path) -> None:
    seen: list[str] = []
    for body in (response(*TALK, call("{}", "x")), stream(*TALK, call("{}", "x"))):
        path = tmp_path / f"{len(seen)}.db"

        async def run(body: Any = body, path: Path = path) -> None:
            kept = {"path": str(path), "texts": True}
            async with client(says(body), write_policy(tmp_path), audit=kept) as caller:
                asked = {**ASK, "stream": isinstance(body, bytes)}
                await caller.post("responses", json=asked)

        asyncio.run(run())
        until(lambda path=path: path.exists() and bool(rows(path)))
        seen.append(rows(path)[0]["detail"]["answer"]["text"])
    assert seen[0] == seen[1]
    assert seen[0].startswith("hm\nhm hm\nIt is a red square on white.\nlook_up\n")
    assert seen[0].count("square") == 1


def test_a_harmful_stream_is_refused(tmp_path: Path) -> None:
    data = stream(thought("hm"), words(f"a {BAD} word"), call("{}"))
    found, events = listen(says(data), write_policy(tmp_path, **BLOCK))
    assert BAD.encode() not in found
    assert b"resp_up" not in found
    well_formed(events)
    assert (spoken(events), refused(events)) == ("<no>", "<no>")
    assert end(events) == ("incomplete", "content_filter")
    last = events[-1]["response"]
    assert (last["model"], last["usage"]["input_tokens"]) == ("up-1", 7)
    assert last["mmguard"]["action"] == "block"


def test_what_has_left_stays_and_the_rest_is_cut(tmp_path: Path) -> None:
    data = stream(thought("hm"), words(f"all is fine here, {BAD} and more"), call("{}"))
    found, events = listen(says(data), write_policy(tmp_path, **BLOCK, **WINDOW))
    assert BAD.encode() not in found
    well_formed(events)
    assert spoken(events).startswith("all is fine")
    assert spoken(events).endswith("<cut>")
    assert end(events) == ("incomplete", "content_filter")
    last = events[-1]["response"]
    assert [item["type"] for item in last["output"]] == ["reasoning", "message"]
    assert last["id"] == "resp_up"
    assert last["output"][1]["id"] == "msg_up"


def test_a_call_that_is_cut_off_is_incomplete(tmp_path: Path) -> None:
    data = stream(call(f'{{"some": "longer", "text": "{BAD}"}}'))
    found, events = listen(says(data), write_policy(tmp_path, **BLOCK, **WINDOW))
    assert BAD.encode() not in found
    well_formed(events)
    items = events[-1]["response"]["output"]
    assert [(i["type"], i["status"]) for i in items] == [
        ("function_call", "incomplete"),
        ("message", "incomplete"),
    ]
    assert '{"some"'.startswith(items[0]["arguments"][:5])


def test_a_mended_stream(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    _, events = listen(says(stream(words(BAD))), policy)
    well_formed(events)
    assert (spoken(events), end(events)) == ("mended", ("completed", None))
    assert events[-1]["response"]["usage"]["output_tokens"] == 10


def test_events_that_repeat_are_read_again_where_they_differ(tmp_path: Path) -> None:
    for place, event in enumerate(parse(stream(words("fine")))):
        if event["type"].endswith((".done", ".completed")):
            told = json.loads(json.dumps(event).replace("fine", f"fine {BAD}"))
            frames = parse(stream(words("fine")))
            frames[place] = told
            data = b"".join(map(frame, frames))
            found, events = listen(says(data), write_policy(tmp_path, **BLOCK, **WINDOW))
            assert BAD.encode() not in found
            assert end(events) == ("incomplete", "content_filter")


PIECES = st.lists(st.sampled_from([BAD, "BA", "D", "AD", "B", "x ", "some words"]), max_size=6)
ITEMS = st.sampled_from(["text", "refusal", "summary", "thought", "arguments", "input", "vendor"])


def item(kind: str, said: str, place: int) -> Json:
    made: Json = {
        "text": words(said),
        "refusal": message({"type": "refusal", "refusal": said}),
        "summary": thought(said),
        "thought": thought("", said),
        "arguments": call(said),
        "input": {"type": "custom_tool_call", "input": said, "name": "x", "call_id": "y"},
        "vendor": {"type": "vendor", "deep": {"said": [said]}},
    }[kind]
    return {**made, "id": f"it_{place}"}


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(ITEMS, PIECES), min_size=1, max_size=3),
    st.lists(st.integers(0, 9000), max_size=8),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_no_banned_byte_leaves(
    tmp_path: Path, said: Any, ends_at: list[int], window: int, hold: int, size: int
) -> None:
    how = {"mode": "window", "window": window, "hold": hold}
    output = [item(kind, "".join(pieces), i) for i, (kind, pieces) in enumerate(said)]
    data = stream(*output, size=size)
    found, events = listen(says(data, 200, *ends_at), write_policy(tmp_path, **BLOCK, stream=how))
    well_formed(events)
    heard: dict[Any, str] = {}
    for told in events:
        spot = told.get("output_index"), told["type"].rpartition(".")[0]
        heard[spot] = heard.get(spot, "") + str(told.get("delta", ""))
    assert not any(BAD in said for said in heard.values())
    assert BAD.encode() not in found
    harmful = any(BAD in "".join(pieces) for _, pieces in said)
    assert end(events) == (("incomplete", "content_filter") if harmful else ("completed", None))
    assert harmful or found == data


@pytest.mark.parametrize("kind", ["text", "refusal", "summary", "thought", "arguments", "input"])
def test_banned_text_is_found_wherever_it_is_split(kind: str, tmp_path: Path) -> None:
    said = f"xx{BAD}yy"
    for size in range(1, len(said) + 1):
        data = stream(words("fine"), item(kind, said, 1), size=size)
        for window in (1, 4):
            how = {"mode": "window", "window": window, "hold": len(BAD)}
            policy = write_policy(tmp_path, **BLOCK, stream=how)
            found, events = listen(says(data), policy)
            assert BAD.encode() not in found
            well_formed(events)
            assert end(events) == ("incomplete", "content_filter")


# -- what cannot be seen --------------------------------------------------------

UNSEEN: dict[str, Json] = {
    "file": {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
    "picture": {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
    "item": {"input": [{"type": "vendor", "x": 1}]},
    "tool": {"tools": [{"type": "image_generation"}]},
    "drawn": {"input": [{"type": "image_generation_call", "result": "aGk="}]},
    "plot": {
        "input": [
            {"type": "code_interpreter_call", "outputs": [{"type": "image", "url": "https://x"}]}
        ]
    },
}


@pytest.mark.parametrize("asked", UNSEEN.values(), ids=UNSEEN)
def test_what_nobody_can_read_the_policy_decides(asked: Json, tmp_path: Path) -> None:
    handler = says(response(words("fine")))
    answer = post(handler, write_policy(tmp_path), **asked)
    assert answer.json()["incomplete_details"] == {"reason": "content_filter"}
    answer = post(handler, write_policy(tmp_path, unreadable="pass"), **asked)
    assert answer.json()["status"] == "completed"


DRAWN = {"id": "ig", "type": "image_generation_call", "status": "completed", "result": "aGk="}


def test_a_picture_that_nobody_asked_for_is_no_answer(tmp_path: Path) -> None:
    for body, streamed in ((response(DRAWN), False), (stream(DRAWN), True)):
        answer = post(says(body), write_policy(tmp_path), stream=streamed)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "unreadable")
        open_policy = write_policy(tmp_path, unreadable="pass")
        answer = post(says(body), open_policy, stream=streamed)
        assert "aGk=" in answer.text


def test_what_the_upstream_remembers_goes_on(tmp_path: Path) -> None:
    for asked in (
        {"input": None, "previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"type": "compaction", "encrypted_content": "x"}]},
        {"store": True, "background": False},
    ):
        answer = post(says(response(words("fine"))), write_policy(tmp_path), **asked)
        assert answer.json()["status"] == "completed", asked


def test_pictures_have_a_limit(tmp_path: Path) -> None:
    turn = {"role": "user", "content": [picture(), picture()]}
    answer = post(says(response()), write_policy(tmp_path), {"images": 1}, input=[turn])
    assert answer.status_code == 400
    assert "send at most 1" in answer.json()["error"]["message"]


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


BAD_BODIES: list[tuple[Json, str]] = [
    ({"input": []}, "at least one item"),
    ({"input": None}, "at least one item"),
    ({"input": [1]}, "give an object"),
    ({"input": [{"role": "king", "content": "x"}]}, "role 'king'"),
    ({"input": [{"role": "user", "content": [1]}]}, "must be an object with a type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "must be a string"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "has no picture"),
    ({"input": [{"role": "user", "content": [picture(file_id="f")]}]}, "twice"),
    ({"input": [{"role": "user", "content": [picture("/etc/x")]}]}, "data:"),
    ({"input": [{"role": "user", "content": [picture("data:image/png;base64,AAAA")]}]}, "no PNG"),
    ({"background": True}, "fetched later, unchecked"),
    ({"previous_response_id": "resp_mmguard_1"}, "mended or withheld here"),
]


@pytest.mark.parametrize(("body", "told"), BAD_BODIES)
def test_bad_bodies_are_told_what_to_fix(body: Json, told: str, tmp_path: Path) -> None:
    answer = post(says(response()), write_policy(tmp_path), **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert told in answer.json()["error"]["message"]


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
