"""The sidecar: what passes is untouched, what does not never leaves, failures have a status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.upstream import (
    Cuts,
    Handler,
    Json,
    chunk,
    client,
    completion,
    cut,
    streamed,
    write_policy,
)
from tests.world import BAD, png

ASK = {"model": "up", "messages": [{"role": "user", "content": "what is this?"}]}
BLOCK: Json = {"refusals": {"cut": "<cut>"}}
WINDOW: Json = {"stream": {"mode": "window", "window": 6, "hold": 3}}


def sends(body: bytes, status: int = 200) -> Handler:
    return lambda request: httpx.Response(status, content=body)


def says(*messages: Json, **more: Any) -> Handler:
    return sends(json.dumps(completion(*messages, **more)).encode())


def streams(data: bytes, *ends: int) -> Handler:
    return lambda request: httpx.Response(200, stream=Cuts(cut(data, ends)))


def post(handler: Handler, policy: Path, body: Json, **known: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        async with client(handler, policy, **known) as caller:
            return await caller.post("chat/completions", json=body)

    return asyncio.run(call())


def listen(handler: Handler, policy: Path, **body: Any) -> tuple[bytes, list[Json]]:
    """The bytes of a stream, and its chunks."""
    data = post(handler, policy, {**ASK, "stream": True, **body}).content
    frames = [frame.removeprefix(b"data: ") for frame in data.split(b"\n\n") if frame]
    assert frames[-1] == b"[DONE]"
    return data, [json.loads(frame) for frame in frames[:-1]]


def spoken(chunks: list[Json], index: int = 0) -> str:
    deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(str(delta.get("content") or "") for delta in deltas)


def finishes(chunks: list[Json]) -> list[str]:
    found = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    return [finish for finish in found if finish]


# -- whole --------------------------------------------------------------------


def test_what_passes_is_byte_for_byte_the_upstreams(tmp_path: Path) -> None:
    body = json.dumps(completion({"content": "fine", "vendor": [1]}, more={"a": None}), indent=3)
    answer = post(sends(body.encode()), write_policy(tmp_path), ASK)
    assert answer.content == body.encode()
    assert answer.headers["x-mmguard-decision"] == "pass"


def test_the_caller_s_body_goes_up_as_it_came(tmp_path: Path) -> None:
    seen: list[Json] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        assert request.headers["authorization"] == "Bearer sk-caller"
        return httpx.Response(200, content=json.dumps(completion({"content": "fine"})))

    parts = [{"type": "text", "text": "one part"}]
    asked = {**ASK, "messages": [{"role": "user", "content": parts}], "vendor": {"x": [1]}}

    async def call() -> None:
        async with client(handler, write_policy(tmp_path)) as caller:
            headers = {"authorization": "Bearer sk-caller"}
            await caller.post("chat/completions", json=asked, headers=headers)

    asyncio.run(call())
    assert seen == [asked]


FIELDS = {
    "content": {"content": f"a {BAD} word"},
    "refusal": {"content": None, "refusal": f"a {BAD} word"},
    "reasoning": {"content": "fine", "reasoning_content": f"a {BAD} word"},
    "arguments": {
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": f"{BAD}"}}
        ],
    },
    "name": {"tool_calls": [{"function": {"name": f"{BAD}", "arguments": "{}"}}]},
    "unknown": {"content": "fine", "vendor": {"deep": [f"a {BAD} word"]}},
    "transcript": {"content": None, "audio": {"id": "a", "transcript": BAD}},
}


@pytest.mark.parametrize("message", FIELDS.values(), ids=FIELDS)
def test_no_field_is_overlooked(message: Json, tmp_path: Path) -> None:
    answer = post(
        says({"content": "fine"}, message), write_policy(tmp_path, **BLOCK), {**ASK, "n": 2}
    )
    assert BAD.encode() not in answer.content
    fine, blocked = answer.json()["choices"]
    assert fine["message"]["content"] == "fine"
    assert fine["finish_reason"] == "stop"
    assert blocked["finish_reason"] == "content_filter"
    assert blocked["message"]["refusal"] == blocked["message"]["content"] != ""
    assert answer.headers["x-mmguard-decision"] == "block"
    assert answer.json()["usage"]["vendor"] == {"kept": 1}


def test_no_field_beside_a_message_is_overlooked(tmp_path: Path) -> None:
    body = completion({"content": "fine"})
    body["choices"][0]["vendor"] = [f"a {BAD} word"]
    answer = post(sends(json.dumps(body).encode()), write_policy(tmp_path), ASK)
    assert BAD.encode() not in answer.content
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
    beside = {"index": 0, "delta": {"content": "fine"}, "vendor": f"a {BAD} word"}
    frame = f"data: {json.dumps({'choices': [beside]})}\n\n".encode()
    found, chunks = listen(sends(frame + ENDING), write_policy(tmp_path))
    assert BAD.encode() not in found
    assert finishes(chunks) == ["content_filter"]


def test_a_mended_answer_counts_all_tokens(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        text = "mended" if "anew" in json.dumps(asked["messages"]) else BAD
        assert asked["model"] == "up"
        return httpx.Response(200, content=json.dumps(completion({"content": text})))

    answer = post(handler, write_policy(tmp_path, repair=["detoxify"]), ASK).json()
    assert answer["choices"][0]["message"]["content"] == "mended"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 24
    assert answer["mmguard"]["choices"][0]["step"] == "detoxify"


def test_an_input_that_is_blocked_never_goes_up(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    policy = write_policy(tmp_path, input=[{"detector": "harm", "action": "block"}])
    asked = {**ASK, "n": 2, "messages": [{"role": "user", "content": BAD}]}
    answer = post(handler, policy, asked).json()
    assert [c["finish_reason"] for c in answer["choices"]] == ["content_filter"] * 2
    assert answer["usage"]["total_tokens"] == 0
    _, chunks = listen(handler, policy, messages=asked["messages"])
    assert finishes(chunks) == ["content_filter"]


# -- streams ------------------------------------------------------------------

TALK = [{"content": piece} for piece in ("It ", "is a ", "red ", "square ", "on white.")]


@pytest.mark.parametrize(
    "fields", [{}, WINDOW, {"mode": "audit"}], ids=["buffer", "window", "audit"]
)
def test_a_stream_that_passes_is_byte_for_byte_the_upstreams(fields: Json, tmp_path: Path) -> None:
    data = streamed(TALK, usage=True)
    found, _ = listen(streams(data, 3, 50, 51, 400), write_policy(tmp_path, **fields))
    assert found == data


def test_a_harmful_stream_is_refused(tmp_path: Path) -> None:
    data = streamed([{"content": "a "}, {"content": BAD}, {"content": " word"}])
    found, chunks = listen(streams(data), write_policy(tmp_path, **BLOCK))
    assert BAD.encode() not in found
    assert finishes(chunks) == ["content_filter"]
    assert chunks[0]["id"] == "chatcmpl-up"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert any(c["choices"][0]["delta"].get("refusal") for c in chunks)


def test_what_has_left_stays_and_the_rest_is_cut(tmp_path: Path) -> None:
    talk = [{"content": piece} for piece in (*"all is fine here, ", BAD, " and more")]
    found, chunks = listen(streams(streamed(talk)), write_policy(tmp_path, **BLOCK, **WINDOW))
    assert BAD.encode() not in found
    assert spoken(chunks).startswith("all is fine")
    assert spoken(chunks).endswith("<cut>")
    assert finishes(chunks) == ["content_filter"]


def test_one_choice_is_refused_and_the_other_goes_on(tmp_path: Path) -> None:
    data = streamed(TALK, [{"content": BAD}, {"content": "x"}])
    found, chunks = listen(streams(data), write_policy(tmp_path, **BLOCK), n=2)
    assert BAD.encode() not in found
    assert spoken(chunks) == "It is a red square on white."
    assert sorted(finishes(chunks)) == ["content_filter", "stop"]


def test_a_mended_stream(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        text = "mended" if "anew" in json.dumps(asked["messages"]) else BAD
        return httpx.Response(200, stream=Cuts([streamed([{"content": text}], usage=True)]))

    _, chunks = listen(handler, write_policy(tmp_path, repair=["detoxify"]))
    assert spoken(chunks) == "mended"
    assert finishes(chunks) == ["stop"]
    assert chunks[-1]["usage"]["total_tokens"] == 24


def test_the_upstream_stops_when_no_choice_needs_more(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield streamed([{"content": f"a {BAD} word"}]).removesuffix(ENDING)
            await asyncio.sleep(60)

        async def aclose(self) -> None:
            stopped.set()

    async def handler(request: httpx.Request) -> httpx.Response:
        if "anew" not in request.content.decode():
            return httpx.Response(200, stream=Endless())
        await asyncio.wait_for(stopped.wait(), 10)
        return httpx.Response(200, stream=Cuts([streamed([{"content": "mended"}])]))

    policy = write_policy(tmp_path, repair=["detoxify"], stream={"window": 4})
    _, chunks = listen(handler, policy)
    assert spoken(chunks) == "mended"


ENDING = chunk(0, {}, "stop") + b"data: [DONE]\n\n"
CHANNELS = st.sampled_from(["content", "reasoning_content", "refusal", "arguments", "vendor"])
WORDS = st.text(f"{BAD} x", max_size=6)


def delta(channel: str, text: str) -> Json:
    if channel == "arguments":
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    return {channel: text}


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.tuples(CHANNELS, WORDS), max_size=6), min_size=1, max_size=3),
    st.lists(st.integers(0, 5000), max_size=8),
    st.integers(1, 9),
    st.integers(1, 9),
)
@example([[("reasoning_content", "B"), ("content", "A"), ("reasoning_content", "AD")]], [], 1, 1)
def test_no_banned_byte_leaves(
    tmp_path: Path, talks: Any, ends: Any, window: int, hold: int
) -> None:
    """Whatever the channel, the choice, the pieces of text and the cuts of the bytes."""
    data = streamed(*([delta(*piece) for piece in talk] for talk in talks))
    how = {"mode": "window", "window": window, "hold": hold}
    policy = write_policy(tmp_path, **BLOCK, stream=how)
    _, chunks = listen(streams(data, *ends), policy, n=len(talks))
    for index in range(len(talks)):
        said: dict[str, str] = {}
        for piece in chunks:
            for choice in piece["choices"]:
                if choice["index"] == index:
                    gather(said, choice["delta"])
        assert not any(BAD in text for text in said.values())
    assert len(finishes(chunks)) == len(talks)


def gather(said: dict[str, str], delta: Json) -> None:
    for name, value in delta.items():
        text = value[0]["function"]["arguments"] if name == "tool_calls" else value
        said[name] = said.get(name, "") + str(text)


# -- failures -----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstreams_refusal_keeps_status_and_body(stream: bool, tmp_path: Path) -> None:
    body = {"error": {"message": "slow down", "type": "rate", "param": None, "code": "x"}}
    handler = sends(json.dumps(body).encode(), 429)
    answer = post(handler, write_policy(tmp_path), {**ASK, "stream": stream})
    assert (answer.status_code, answer.json()) == (429, body)


BROKEN = {
    "half a frame": streamed(TALK)[:-40],
    "an error frame": streamed(TALK)[:300] + b'\n\ndata: {"error": {"message": "out"}}\n\n',
    "no json": b"data: {nonsense\n\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_stream_that_breaks_before_anything_left_has_a_status(
    data: bytes, tmp_path: Path
) -> None:
    answer = post(streams(data), write_policy(tmp_path), {**ASK, "stream": True})
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "upstream_error"


def test_a_stream_that_breaks_after_it_began_ends_with_an_error(tmp_path: Path) -> None:
    data = streamed(TALK)[:700]
    _, chunks = listen(streams(data), write_policy(tmp_path, **WINDOW))
    assert spoken([c for c in chunks if "choices" in c]).startswith("It")
    assert chunks[-1]["error"]["type"] == "upstream_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_detector_is_unavailable_and_nothing_leaves(stream: bool, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "broken", "action": "block"}])
    handler = streams(streamed(TALK)) if stream else says({"content": "secret"})
    answer = post(handler, policy, {**ASK, "stream": stream})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["type"] == "guard_unavailable"


BAD_BODIES = [
    (b"{nonsense", "no JSON"),
    (b"[]", "must be a JSON object"),
    (b'{"messages": []}', "at least one message"),
    (b'{"messages": [{"role": "king"}]}', "use one of"),
    (b'{"n": 0, "messages": [{"role": "user", "content": "x"}]}', "n=0"),
]


@pytest.mark.parametrize(("content", "told"), BAD_BODIES)
def test_bad_bodies_are_told_what_to_fix(content: bytes, told: str, tmp_path: Path) -> None:
    async def call() -> httpx.Response:
        async with client(says(), write_policy(tmp_path)) as caller:
            return await caller.post("chat/completions", content=content)

    answer = asyncio.run(call())
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("key", ["image_url", "path", "image"])
def test_no_caller_names_a_file_of_the_sidecar_s(scheme: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(png())
    part = {"type": "image_url", key: f"{scheme}{tmp_path / 'own.png'}"}
    asked = {**ASK, "messages": [{"role": "user", "content": [part]}]}
    answer = post(says({"content": "seen"}), write_policy(tmp_path), asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image"


def test_bodies_and_requests_have_limits(tmp_path: Path) -> None:
    policy = write_policy(tmp_path)
    answer = post(says(), policy, {**ASK, "pad": "x" * 2**20}, body_mib=0.5)
    assert answer.status_code == 413

    async def crowd() -> list[int]:
        gate = asyncio.Event()

        async def slow(request: httpx.Request) -> httpx.Response:
            await gate.wait()
            return httpx.Response(200, content=json.dumps(completion({"content": "fine"})))

        async with client(slow, policy, in_flight=2, queue=0) as caller:
            calls = [
                asyncio.ensure_future(caller.post("chat/completions", json=ASK)) for _ in "abc"
            ]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            gate.set()
            assert [call.result().headers["retry-after"] for call in done] == ["1"]
            return sorted([(await call).status_code for call in calls])

    assert asyncio.run(crowd()) == [200, 200, 429]
