"""The official client, unmodified, against the sidecar before a real upstream process."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from tests.loopback import served
from tests.upstream import completion, detector, streamed, write_policy
from tests.world import BAD, png

TOOL = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"city": "Paris"}'},
}


def talk(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What each choice says: harm where a picture is, or where it is asked for by name."""
    asked = json.dumps(body["messages"])
    if "tools" in body:
        return [{"content": None, "tool_calls": [TOOL]}]
    if "response_format" in body:
        return [{"content": '{"color": "red"}'}]
    bad = "image_url" in asked or "harm me" in asked
    return [
        {"content": f"some {BAD} words" if bad and i == 0 else "It is fine."}
        for i in range(body.get("n") or 1)
    ]


def make_upstream() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        if body["model"] == "missing":
            error = {"message": "no such model", "type": "invalid_request_error", "code": "404"}
            return Response(json.dumps({"error": error}), 404)
        said = talk(body)
        if not body.get("stream"):
            return Response(json.dumps(completion(*said)), media_type="application/json")
        deltas = [split(one) for one in said]
        data = streamed(*deltas, usage=bool(body.get("stream_options")))
        return StreamingResponse(iter([data[:100], data[100:]]), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "up", "object": "model", "created": 1}]}

    return app


def split(message: dict[str, Any]) -> list[dict[str, Any]]:
    if calls := message.get("tool_calls"):
        head = {**calls[0], "index": 0, "function": {**calls[0]["function"], "arguments": ""}}
        arguments = calls[0]["function"]["arguments"]
        parts = [{"index": 0, "function": {"arguments": c}} for c in (arguments[:5], arguments[5:])]
        return [{"tool_calls": [part]} for part in (head, *parts)]
    return [{"content": word + " "} for word in message["content"].split(" ")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    policy = write_policy(tmp_path_factory.mktemp("policy"))
    with served(make_upstream()) as upstream:
        side = make_app(Settings(upstream=upstream, policy=str(policy)), {"harm": detector()})
        with served(side) as url:
            yield openai.OpenAI(base_url=url, api_key="any", max_retries=0)


def ask(client: openai.OpenAI, text: str = "hello", **more: Any) -> Any:
    messages = more.pop("messages", [{"role": "user", "content": text}])
    return client.chat.completions.create(model=more.pop("model", "up"), messages=messages, **more)


def test_chat(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == "It is fine."
    assert answer.usage.total_tokens == 12
    assert answer.system_fingerprint == "fp"


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    words = [c.delta.content or "" for chunk in chunks for c in chunk.choices]
    assert "".join(words) == "It is fine. "
    assert chunks[-1].usage.total_tokens == 12


def test_harm_is_a_refusal_with_its_reason(client: openai.OpenAI) -> None:
    refused = ask(client, "harm me").choices[0]
    assert refused.finish_reason == "content_filter"
    assert refused.message.refusal
    chunks = list(ask(client, "harm me", stream=True))
    assert BAD not in str(chunks)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def show(url: str) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]}]


def test_pictures(client: openai.OpenAI) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    refused = ask(client, messages=show(uri))
    assert refused.choices[0].finish_reason == "content_filter"
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, messages=show("data:image/png;base64,AAAA"))
    assert error.value.code == "invalid_image"


def test_choices(client: openai.OpenAI) -> None:
    answer = ask(client, "harm me", n=3)
    assert [c.finish_reason for c in answer.choices] == ["content_filter", "stop", "stop"]
    chunks = list(ask(client, "harm me", n=3, stream=True))
    ends = {c.index: c.finish_reason for k in chunks for c in k.choices if c.finish_reason}
    assert ends == {0: "content_filter", 1: "stop", 2: "stop"}


def test_tools(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    call = ask(client, tools=tools).choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("look_up", '{"city": "Paris"}')
    with client.chat.completions.stream(
        model="up",
        messages=[{"role": "user", "content": "x"}],
        tools=tools,  # type: ignore[arg-type]  # a literal
    ) as stream:
        made = stream.get_final_completion().choices[0].message.tool_calls
    assert made
    assert made[0].function.arguments == '{"city": "Paris"}'


def test_structured_output(client: openai.OpenAI) -> None:
    class Color(BaseModel):
        color: str

    def parse(text: str) -> Any:
        return client.chat.completions.parse(
            model="up", messages=[{"role": "user", "content": text}], response_format=Color
        )

    assert parse("x").choices[0].message.parsed == Color(color="red")


def test_errors_keep_their_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no such model"):
        ask(client, model="missing")
    with pytest.raises(openai.NotFoundError, match="no such model"):
        ask(client, model="missing", stream=True)
    with pytest.raises(openai.BadRequestError, match="at least one message"):
        ask(client, messages=[])


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["up"]
