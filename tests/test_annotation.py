"""`moderation` of chat completions: what the detectors found, told to callers who ask."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.loopback import served
from tests.upstream import (
    Cuts,
    Handler,
    Json,
    app,
    client,
    completion,
    streamed,
    write_policy,
)
from tests.world import BAD

WISH: Json = {"model": "omni-moderation-latest"}
ASK: Json = {"model": "up", "messages": [{"role": "user", "content": "hello"}], "moderation": WISH}
BLOCK = {"refusals": {"default": "<no>"}}


def upstream(*said: str) -> Handler:
    """Says this, whole or streamed, to whoever does not ask it for moderation."""

    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        assert "moderation" not in asked
        texts = ("mended",) if "anew" in json.dumps(asked) else said
        if not asked.get("stream"):
            return httpx.Response(200, json=completion(*({"content": text} for text in texts)))
        wide = [[{"content": text}] for text in texts]
        return httpx.Response(200, stream=Cuts([streamed(*wide, usage=True)]))

    return handler


def post(handler: Handler, policy: Path, known: Json | None = None, **body: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with client(handler, policy, **(known or {})) as caller:
            return await caller.post("chat/completions", json={**ASK, **body})

    return asyncio.run(run())


def told(answer: httpx.Response) -> Json:
    """The annotation, of an answer or of the one chunk of a stream that has it."""
    if answer.headers["content-type"] == "application/json":
        whole: Json = answer.json()["moderation"]
        return whole
    frames = [line.removeprefix("data: ") for line in answer.text.split("\n\n")]
    chunks = [json.loads(frame) for frame in frames if frame.startswith("{")]
    [chunk] = [chunk for chunk in chunks if "moderation" in chunk]
    assert (chunk["choices"], chunk["object"]) == ([], "chat.completion.chunk")
    assert chunk["id"] == chunks[0]["id"]
    made: Json = chunk["moderation"]
    return made


def flags(side: Json) -> list[bool]:
    assert side["type"] == "moderation_results"
    for result in side["results"]:
        assert result["type"] == "moderation_result"
        assert result["model"] == side["model"]
        assert set(result) == {
            "type",
            "model",
            "flagged",
            "categories",
            "category_scores",
            "category_applied_input_types",
        }
        assert result["categories"]["unsafe"] == result["flagged"]
    return [result["flagged"] for result in side["results"]]


@pytest.mark.parametrize("stream", [False, True])
def test_each_side_is_told(stream: bool, tmp_path: Path) -> None:
    handler = upstream("fine", f"a {BAD} word")
    answer = post(handler, write_policy(tmp_path, **BLOCK), stream=stream, n=2)
    found = told(answer)
    assert flags(found["input"]) == [False]
    assert flags(found["output"]) == [False, True]
    [asked] = found["input"]["results"]
    assert asked["category_scores"]["unsafe"] == pytest.approx(0.1)
    assert found["output"]["results"][1]["category_scores"]["unsafe"] == pytest.approx(0.9)
    assert BAD not in answer.text


def test_what_passes_is_the_upstreams_but_for_the_annotation(tmp_path: Path) -> None:
    answer = post(upstream("fine"), write_policy(tmp_path)).json()
    assert answer.pop("moderation")["output"]["results"][0]["flagged"] is False
    assert answer == completion({"content": "fine"})
    plain = post(upstream("fine"), write_policy(tmp_path), moderation=None)
    assert plain.json() == completion({"content": "fine"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_mended_answer_tells_of_its_draft(stream: bool, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    answer = post(upstream(BAD), policy, stream=stream)
    assert "mended" in answer.text
    assert flags(told(answer)["output"]) == [True]


def test_a_request_is_flagged_and_answered_unless_it_shall_not_be(tmp_path: Path) -> None:
    asked: Json = {"messages": [{"role": "user", "content": f"a {BAD} word"}]}
    policy = write_policy(tmp_path, **BLOCK)
    answer = post(upstream("fine"), policy, **asked)
    assert answer.headers["x-mmguard-decision"] == "pass"
    assert flags(told(answer)["input"]) == [True]
    wish = {**WISH, "policy": {"input": {"mode": "block"}}}
    for stream in (False, True):
        answer = post(upstream("fine"), policy, **asked, moderation=wish, stream=stream)
        assert "fine" not in answer.text
        assert "<no>" in answer.text
        assert flags(told(answer)["input"]) == [True]
        assert told(answer)["output"]["code"] == "no_output"


@pytest.mark.parametrize("mode", ["score", "block"])
def test_block_withholds_what_would_be_mended(mode: str, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"], **BLOCK)
    wish = {**WISH, "policy": {"output": {"mode": mode}, "input": None}}
    answer = post(upstream(BAD), policy, moderation=wish)
    decided = {"score": "repair", "block": "block"}[mode]
    assert answer.headers["x-mmguard-decision"] == decided
    assert answer.headers["x-mmguard-policy"] == told(answer)["input"]["model"]


def test_nobody_is_let_through_by_asking(tmp_path: Path) -> None:
    wish = {**WISH, "policy": {"input": {"mode": "score"}, "output": {"mode": "score"}}}
    checks = [{"detector": "harm", "action": "block"}]
    policy = write_policy(tmp_path, **BLOCK, input=checks)
    for asked, said in ((BAD, "fine"), ("hello", BAD)):
        turns = [{"role": "user", "content": asked}]
        answer = post(upstream(said), policy, moderation=wish, messages=turns)
        assert answer.headers["x-mmguard-decision"] == "block"


def test_why_nothing_is_told(tmp_path: Path) -> None:
    silent = write_policy(tmp_path, mode="off", output=[])
    found = told(post(upstream("fine"), silent))
    assert {side["code"] for side in found.values()} == {"no_detector"}
    checks = [{"detector": "broken", "action": "block", "on_error": "pass"}]
    found = told(post(upstream("fine"), write_policy(tmp_path, output=checks)))
    assert {side["code"] for side in found.values()} == {"detector_failed"}
    assert {side["type"] for side in found.values()} == {"error"}


@pytest.mark.parametrize(
    ("wish", "fix"),
    [
        ("yes", "give an object with a model"),
        ({}, "give an object with a model"),
        ({**WISH, "policy": 1}, "input, output or both"),
        ({**WISH, "policy": {"input": {"mode": "drop"}}}, "mode='drop': give score or block"),
        ({**WISH, "policy": {"output": {}}}, "mode=None: give score or block"),
    ],
)
def test_a_wish_that_nobody_understands_is_told_so(wish: Any, fix: str, tmp_path: Path) -> None:
    answer = post(upstream("fine"), write_policy(tmp_path), moderation=wish)
    assert answer.status_code == 400
    assert fix in answer.json()["error"]["message"]


def test_an_upstream_that_knows_it_may_answer_itself(tmp_path: Path) -> None:
    own = {"input": {"type": "error", "code": "x", "message": "y"}}

    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["moderation"] == WISH
        return httpx.Response(200, json=completion({"content": "fine"}, moderation=own))

    answer = post(handler, write_policy(tmp_path), {"moderation": "forward"})
    assert answer.json() == completion({"content": "fine"}, moderation=own)


def test_the_official_client_reads_it(tmp_path: Path) -> None:
    with served(app(upstream(f"a {BAD} word"), write_policy(tmp_path))) as url:
        caller = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        create: Any = caller.chat.completions.create
        assert create(**ASK).moderation.output.results[0].flagged
        [found] = [c.moderation for c in create(**ASK, stream=True) if c.moderation]
        assert found.output.results[0].flagged
        assert found.input.type == "moderation_results"
