"""OpenAI's responses by events: what passes is untouched, and no banned text leaves by any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mmguard.server.heard import COPIES, FRAME
from tests.replies import (
    ASK,
    BLOCK,
    WINDOW,
    call,
    end,
    frame,
    listen,
    message,
    parse,
    post,
    refused,
    response,
    says,
    spoken,
    stream,
    thought,
    well_formed,
    words,
)
from tests.test_audit import rows, until
from tests.upstream import Json, client, write_policy
from tests.world import BAD

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


def heard(body: Json | bytes, path: Path, policy: Path) -> str:
    """What the guard read of an answer, from its audit."""

    async def run() -> None:
        kept = {"path": str(path), "texts": True}
        async with client(says(body), policy, audit=kept) as caller:
            asked = {**ASK, "stream": isinstance(body, bytes)}
            await caller.post("responses", json=asked)

    asyncio.run(run())
    until(lambda: path.exists() and bool(rows(path)))
    text: str = rows(path)[0]["detail"]["answer"]["text"]
    return text


def test_streamed_and_whole_say_the_same(tmp_path: Path) -> None:
    policy, answer = write_policy(tmp_path), (*TALK, call("{}", "x"))
    whole = heard(response(*answer), tmp_path / "1.db", policy)
    assert whole == heard(stream(*answer), tmp_path / "2.db", policy)
    assert whole == 'hm\nhm hm\nIt is a red square on white.\nlook_up\n{"a": 1}\nx\n{}'


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
    cut = events[-1]["response"]["output"]
    assert [(i["type"], i["status"]) for i in cut] == [
        ("function_call", "incomplete"),
        ("message", "incomplete"),
    ]
    assert '{"some"'.startswith(cut[0]["arguments"][:5])


def test_what_was_open_beside_a_mended_text_is_incomplete(tmp_path: Path) -> None:
    frames = parse(stream(call('{"a": 1}'), words(f"All is fine here. And {BAD} too."), size=40))
    late = [e for e in frames if e.get("output_index") == 0 and e["type"].endswith(".done")]
    kept = [e for e in frames if e not in late]
    data = b"".join(map(frame, [*kept[:-1], *late, kept[-1]]))
    how = {"mode": "window", "window": 6, "hold": 3, "after": ["resume"]}
    policy = write_policy(tmp_path, repair=["resume"], stream=how)

    def handler(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content).get("stream"):
            return httpx.Response(200, content=data)
        return httpx.Response(200, json=response(words("And mended.")))

    found, events = listen(handler, policy)
    assert BAD.encode() not in found
    assert spoken(events) == "All is fine here. And mended."
    assert end(events) == ("completed", None)
    items = events[-1]["response"]["output"]
    assert [item["status"] for item in items] == ["incomplete", "completed"]


def test_a_mended_stream(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    _, events = listen(says(stream(words(BAD))), policy)
    well_formed(events)
    assert (spoken(events), end(events)) == ("mended", ("completed", None))
    assert events[-1]["response"]["usage"]["output_tokens"] == 10


def test_the_upstream_stops_when_its_answer_is_harmful(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield stream(words(f"a {BAD} word")).rpartition(b"event: response.output_text.done")[0]
            await asyncio.sleep(60)

        async def aclose(self) -> None:
            stopped.set()

    async def handler(request: httpx.Request) -> httpx.Response:
        if "anew" not in request.content.decode():
            return httpx.Response(200, stream=Endless())
        await asyncio.wait_for(stopped.wait(), 10)
        return httpx.Response(200, json=response(words("mended")))

    policy = write_policy(tmp_path, repair=["detoxify"], stream={"window": 4})
    _, events = listen(handler, policy)
    well_formed(events)
    assert (spoken(events), end(events)) == ("mended", ("completed", None))


def test_events_that_repeat_are_read_again_where_they_differ(tmp_path: Path) -> None:
    for place, event in enumerate(parse(stream(words("fine")))):
        if event["type"].endswith((".done", ".completed")):
            for other in (f"fine {BAD}", f"so {BAD}", f"{BAD} is fine"):
                frames = parse(stream(words("fine")))
                frames[place] = json.loads(json.dumps(event).replace("fine", other))
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


def every(policy: Path, sent: Sequence[bytes]) -> list[bytes]:
    """What one sidecar lets out of each of these streams."""
    waiting = iter(sent)

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=next(waiting))

    async def run() -> list[bytes]:
        async with client(handler, policy) as caller:
            asked = {**ASK, "stream": True}
            return [(await caller.post("responses", json=asked)).content for _ in sent]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["text", "refusal", "summary", "thought", "arguments", "input"])
@pytest.mark.parametrize("window", [1, 4])
def test_banned_text_is_found_wherever_it_is_split(kind: str, window: int, tmp_path: Path) -> None:
    said = f"xx{BAD}yy"
    how = {"mode": "window", "window": window, "hold": len(BAD)}
    sent = [
        stream(words("fine"), item(kind, said, 1), size=size) for size in range(1, len(said) + 1)
    ]
    for found in every(write_policy(tmp_path, **BLOCK, stream=how), sent):
        events = parse(found)
        assert BAD.encode() not in found
        well_formed(events)
        assert end(events) == ("incomplete", "content_filter")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a value there are objects, but in those that say nothing."""
    if isinstance(value, dict):
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in inside if isinstance(value, dict | list) else ():
        if isinstance(inner, dict | list) and name not in (*COPIES, *FRAME - {"output"}):
            yield from places(inner, (*path, name))


def test_no_object_of_any_event_is_overlooked(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, **BLOCK, **WINDOW)
    events = parse(stream(thought("hm"), words("fine"), call("{}"), size=9))
    spots = [(i, path) for i, event in enumerate(events) for path in places(event)]
    assert len(spots) > 50

    sent = []
    for i, path in spots:
        told = json.loads(json.dumps(events))
        inner = told[i]
        for step in path:
            inner = inner[step]
        inner["vendor"] = f"x {BAD}"
        sent.append(b"".join(map(frame, told)))
    for spot, found in zip(spots, every(policy, sent), strict=True):
        assert BAD.encode() not in found, spot


def test_no_event_is_too_odd(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, **BLOCK, **WINDOW)
    sent = []
    for i, event in enumerate(events := parse(stream(words(f"It is fine, {BAD}"), size=20))):
        for name in event.get("item") or event.get("part") or event:
            for odd in (["x"], {"x": 1}, None):
                told = json.loads(json.dumps(events))
                inner = told[i].get("item") or told[i].get("part") or told[i]
                inner[name] = odd
                sent.append(b"".join(map(frame, told)))
    for found in every(policy, sent):
        assert BAD.encode() not in found
        assert b"server_error" not in found
