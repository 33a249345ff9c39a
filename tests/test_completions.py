"""The older completions: guarded as chats are, with the text where their clients look."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from hypothesis import HealthCheck, given, settings, strategies as st

from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from tests.loopback import served
from tests.upstream import (
    SHARED,
    USAGE,
    Cuts,
    Handler,
    Json,
    client,
    completion,
    cut,
    detector,
    write_policy,
)
from tests.world import BAD

ASK = {"model": "up", "prompt": "say:"}
WINDOW: Json = {"stream": {"mode": "window", "window": 6, "hold": 3}}
HEAD = {**SHARED, "object": "text_completion"}


def texts(*choices: str, **more: Any) -> Json:
    """A completion with these texts; `more` stands in each choice."""
    made = [
        {"index": i, "text": text, "logprobs": None, "finish_reason": "stop", **more}
        for i, text in enumerate(choices)
    ]
    return {**HEAD, "choices": made, "usage": USAGE}


def stream(*choices: list[str], name: str = "text") -> bytes:
    """The choices' pieces in turns, then their ends and the usage."""
    frames = []
    for turn in range(max(map(len, choices))):
        pieces = [(i, c[turn]) for i, c in enumerate(choices) if turn < len(c)]
        frames += [[{"index": i, "text": None, name: p, "finish_reason": None}] for i, p in pieces]
    ends = [{"index": i, "text": "", "finish_reason": "stop"} for i in range(len(choices))]
    bodies = [{**HEAD, "choices": c} for c in (*frames, *([end] for end in ends), [])]
    bodies[-1]["usage"] = USAGE
    return b"".join(b"data: %s\n\n" % json.dumps(b).encode() for b in bodies) + b"data: [DONE]\n\n"


def answering(body: Json | bytes, *ends: int) -> Handler:
    """An upstream that mends chats and says this to prompts."""

    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        if request.url.path == "/v1/chat/completions":
            assert not {"prompt", "echo", "logprobs", "n"} & set(asked)
            return httpx.Response(200, content=json.dumps(completion({"content": "mended"})))
        assert request.url.path == "/v1/completions"
        if isinstance(body, bytes):
            return httpx.Response(200, stream=Cuts(cut(body, ends)))
        return httpx.Response(200, content=json.dumps(body, indent=1))

    return handler


def post(handler: Handler, policy: Path, **body: Any) -> httpx.Response:
    """A call of a sidecar that would keep refusals out of a chat's content."""

    async def call() -> httpx.Response:
        async with client(handler, policy, refusal_in_content=False) as caller:
            return await caller.post("completions", json={**ASK, **body})

    return asyncio.run(call())


def listen(handler: Handler, policy: Path, **body: Any) -> tuple[bytes, list[Json]]:
    data = post(handler, policy, stream=True, **body).content
    frames = [frame.removeprefix(b"data: ") for frame in data.split(b"\n\n") if frame]
    assert frames[-1] == b"[DONE]"
    return data, [json.loads(frame) for frame in frames[:-1]]


def said(chunks: list[Json], index: int = 0) -> str:
    return "".join(c["text"] or "" for k in chunks for c in k["choices"] if c["index"] == index)


def ends(chunks: list[Json]) -> list[str]:
    return [c["finish_reason"] for k in chunks for c in k["choices"] if c["finish_reason"]]


# -- whole --------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["say:", ["say:"]])
def test_what_passes_is_byte_for_byte_the_upstreams(prompt: Any, tmp_path: Path) -> None:
    body = texts("fine", vendor=[1])
    answer = post(answering(body), write_policy(tmp_path), prompt=prompt)
    assert answer.content == json.dumps(body, indent=1).encode()
    assert answer.headers["x-mmguard-decision"] == "pass"


@pytest.mark.parametrize("field", ["text", "vendor"])
def test_a_harmful_choice_is_refused(field: str, tmp_path: Path) -> None:
    body = texts("fine", "fine", logprobs={"tokens": ["x"]})
    body["choices"][1][field] = f"a {BAD} word"
    policy = write_policy(tmp_path, refusals={"default": "<no>"})
    answer = post(answering(body), policy, n=2)
    assert BAD not in answer.text
    fine, refused = answer.json()["choices"]
    assert fine == body["choices"][0]
    assert refused == {
        "index": 1,
        "text": "<no>",
        "logprobs": None,
        "finish_reason": "content_filter",
    }
    assert answer.json()["id"] == SHARED["id"]


def test_a_harmful_text_is_mended(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    answer = post(answering(texts(BAD)), policy, echo=True, logprobs=2, n=1).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("mended", "stop")
    assert answer["usage"]["total_tokens"] == 24


def test_a_blocked_prompt_never_goes_up(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    policy = write_policy(tmp_path, input=[{"detector": "harm", "action": "block"}])
    answer = post(handler, policy, prompt=[BAD]).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    _, chunks = listen(handler, policy, prompt=BAD)
    assert ends(chunks) == ["content_filter"]
    assert said(chunks) == answer["choices"][0]["text"] != ""


# -- streams ------------------------------------------------------------------

TALK = ["It ", "is a ", "red ", "square ", "on white."]


@pytest.mark.parametrize("fields", [{}, WINDOW, {"mode": "audit"}])
def test_a_stream_that_passes_is_byte_for_byte_the_upstreams(fields: Json, tmp_path: Path) -> None:
    data = stream(TALK)
    found, _ = listen(answering(data, 3, 50, 51), write_policy(tmp_path, **fields))
    assert found == data


def test_a_stream_is_mended(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/completions":
            return httpx.Response(200, stream=Cuts([stream([BAD])]))
        asked = json.loads(request.content)
        delta = {"index": 0, "delta": {"content": "mended"}, "finish_reason": "stop"}
        data = f"data: {json.dumps({'choices': [delta]})}\n\ndata: [DONE]\n\n"
        assert asked["stream"] is True
        return httpx.Response(200, content=data)

    _, chunks = listen(handler, write_policy(tmp_path, repair=["detoxify"]))
    assert said(chunks) == "mended"
    assert ends(chunks) == ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_what_has_left_stays_and_the_rest_is_cut(tmp_path: Path) -> None:
    talk = [*"all is fine here, ", BAD, " and more"]
    policy = write_policy(tmp_path, refusals={"cut": "<cut>"}, **WINDOW)
    found, chunks = listen(answering(stream(talk)), policy)
    assert BAD.encode() not in found
    assert said(chunks).startswith("all is fine")
    assert said(chunks).endswith("<cut>")
    assert ends(chunks) == ["content_filter"]


PIECES = st.sampled_from([BAD, "BA", "D", "AD", "B", "x ", "some words", ""])


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(PIECES, max_size=6), min_size=1, max_size=3),
    st.sampled_from(["text", "vendor"]),
    st.lists(st.integers(0, 5000), max_size=8),
    st.integers(1, 9),
)
def test_no_banned_byte_leaves(
    tmp_path: Path, talks: list[list[str]], name: str, ends_at: list[int], hold: int
) -> None:
    how = {"mode": "window", "window": 5, "hold": hold}
    policy = write_policy(tmp_path, refusals={"cut": "<cut>"}, stream=how)
    handler = answering(stream(*talks, name=name), *ends_at)
    _, chunks = listen(handler, policy, n=len(talks))
    for i in range(len(talks)):
        own = [c for k in chunks for c in k["choices"] if c["index"] == i]
        assert BAD not in "".join(str(c.get(name) or "") for c in own)
        assert BAD not in said(chunks, i)
    assert len(ends(chunks)) == len(talks)


# -- failures -----------------------------------------------------------------


@pytest.mark.parametrize("prompt", [None, [1, 2], ["a", "b"], [], {"a": 1}])
def test_bad_prompts_are_told_what_to_fix(prompt: Any, tmp_path: Path) -> None:
    answer = post(answering(texts("x")), write_policy(tmp_path), prompt=prompt)
    assert answer.status_code == 400
    assert "prompt: give one text" in answer.json()["error"]["message"]


@pytest.mark.parametrize("wide", [False, True])
def test_a_failed_detector_is_unavailable(wide: bool, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "broken", "action": "block"}])
    body: Json | bytes = stream(["secret"]) if wide else texts("secret")
    answer = post(answering(body), policy, stream=wide)
    assert answer.status_code == 503


def test_a_chat_s_answer_is_no_completion(tmp_path: Path) -> None:
    answer = post(answering(completion({"content": "fine"})), write_policy(tmp_path))
    assert answer.status_code == 502


def test_the_official_client(tmp_path: Path) -> None:
    upstream = FastAPI()

    @upstream.post("/v1/completions")
    async def complete(request: Request) -> Response:
        asked = await request.json()
        text = f"some {BAD}" if "harm" in asked["prompt"] else "It is fine."
        if asked.get("stream"):
            return Response(stream(text.split(" ")), media_type="text/event-stream")
        return Response(json.dumps(texts(text)), media_type="application/json")

    policy = write_policy(tmp_path)
    with served(upstream) as up:
        side = make_app(Settings(upstream=up, policy=str(policy)), {"harm": detector()})
        with served(side) as url:
            caller = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
            fine = caller.completions.create(model="up", prompt="hello")
            assert (fine.choices[0].text, fine.usage and fine.usage.total_tokens) == (
                "It is fine.",
                12,
            )
            refused = caller.completions.create(model="up", prompt="harm")
            assert refused.choices[0].finish_reason == "content_filter"
            pieces = list(caller.completions.create(model="up", prompt="harm", stream=True))
            assert BAD not in str(pieces)
            assert [c.finish_reason for p in pieces for c in p.choices][-1] == "content_filter"
