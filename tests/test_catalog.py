"""What is asked of the upstream but no answer: its models, and how many tokens it would read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests import replies, talks
from tests.loopback import served
from tests.upstream import Handler, Json, app, client, write_policy

SEEN = list[httpx.Request]


def tells(body: Json, seen: SEEN, status: int = 200) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, json=body)

    return handler


def ask(handler: Handler, policy: Path, method: str, path: str, **how: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        known = how.pop("known", {})
        async with client(handler, policy, **known) as caller:
            return await caller.request(method, path, **how)

    return asyncio.run(call())


def test_models_in_either_form(tmp_path: Path) -> None:
    seen: SEEN = []
    policy, body = write_policy(tmp_path), {"data": [{"id": "up"}], "has_more": False}
    bearer = {"authorization": "Bearer sk-caller"}
    answer = ask(tells(body, seen), policy, "GET", "models", headers=bearer)
    assert answer.json() == body
    assert seen[0].headers["authorization"] == "Bearer sk-caller"
    key = {"x-api-key": "sk-ant-api-x", "anthropic-version": "2023-06-01"}
    ask(tells(body, seen), policy, "GET", "models?limit=2&after_id=x", headers=key)
    assert str(seen[1].url) == "http://up/v1/models?limit=2&after_id=x"
    assert seen[1].headers["x-api-key"] == "sk-ant-api-x"
    assert seen[1].headers["anthropic-version"] == "2023-06-01"
    ask(tells(body, seen), policy, "GET", "models/org/name%3F")
    assert seen[2].url.raw_path == b"/v1/models/org%2Fname%3F"


def test_no_name_leads_elsewhere(tmp_path: Path) -> None:
    seen: SEEN = []
    for name in ("%2e%2e", "%2e", "%2e%2e%2ffiles", "x%2f..%2f..%2ffiles"):
        answer = ask(tells({}, seen), write_policy(tmp_path), "GET", f"models/{name}")
        assert answer.status_code in (400, 404)
    assert not seen


def test_whom_the_sidecar_does_not_know_it_tells_nothing(tmp_path: Path) -> None:
    seen: SEEN = []
    known = {"keys": {"team": {"key": "team-key-1"}}}
    for method, path in (
        ("GET", "models"),
        ("GET", "models/up"),
        ("POST", "messages/count_tokens"),
        ("POST", "responses/input_tokens"),
    ):
        answer = ask(tells({}, seen), write_policy(tmp_path), method, path, json={}, known=known)
        assert answer.status_code == 401
    assert not seen


COUNTS: list[tuple[str, Json]] = [
    ("messages/count_tokens", {"model": "up", "messages": talks.ASK["messages"]}),
    ("responses/input_tokens", {"model": "up", "input": "what is this?"}),
]


@pytest.mark.parametrize(("path", "body"), COUNTS)
def test_counts_of_tokens(path: str, body: Json, tmp_path: Path) -> None:
    seen: SEEN = []
    told = {"input_tokens": 7}
    answer = ask(tells(told, seen), write_policy(tmp_path), "POST", path, json=body)
    assert answer.json() == told
    assert (seen[0].url.path, json.loads(seen[0].content)) == (f"/v1/{path}", body)
    refused = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
    answer = ask(tells(refused, seen, 429), write_policy(tmp_path), "POST", path, json=body)
    assert (answer.status_code, answer.json()) == (429, refused)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("messages/count_tokens", talks.picture(type="url", url="https://pictures.test/a.png")),
        ("responses/input_tokens", replies.picture("https://pictures.test/a.png")),
    ],
)
def test_no_link_goes_up_to_be_counted(path: str, part: Json, tmp_path: Path) -> None:
    seen: SEEN = []
    turns = [{"role": "user", "content": [part]}]
    body = {"model": "up", "messages": turns, "input": turns}
    answer = ask(tells({}, seen), write_policy(tmp_path), "POST", path, json=body)
    assert answer.status_code == 400
    assert not seen


def test_the_official_clients(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, json={"input_tokens": 7})
        own = "anthropic-version" in request.headers
        model = {"id": "claude" if own else "up", "type": "model", "object": "model"}
        many = request.url.path == "/v1/models"
        return httpx.Response(200, json={"data": [model], "has_more": False} if many else model)

    with served(app(handler, write_policy(tmp_path))) as url:
        caller = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        assert [model.id for model in caller.models.list()] == ["up"]
        assert caller.models.retrieve("up").id == "up"
        assert caller.responses.input_tokens.count(model="up", input="x").input_tokens == 7
        other = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="any", max_retries=0)
        assert [model.id for model in other.models.list()] == ["claude"]
        turn: Any = {"role": "user", "content": "x"}
        assert other.messages.count_tokens(model="up", messages=[turn]).input_tokens == 7
