"""The official client's responses, unmodified, against the sidecar before a real upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from tests.loopback import served
from tests.replies import BLOCK, call, picture, response, stream, thought, words
from tests.upstream import Json, detector, write_policy
from tests.world import BAD

TOOL: Any = {"type": "function", "name": "look_up", "parameters": {}, "strict": False}


def talk(asked: Json) -> list[Json]:
    """What the upstream says: harm where a picture is, or where it is asked for by name."""
    if asked.get("tools"):
        return [thought("hm"), call('{"city": "Paris"}')]
    if "json_schema" in json.dumps(asked.get("text")) and "harm me" not in json.dumps(asked):
        return [words('{"color": "red"}')]
    bad = "harm me" in json.dumps(asked) or '"input_image"' in json.dumps(asked)
    return [thought("hm"), words(f"some {BAD} words" if bad else "It is fine.")]


def make_upstream() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        asked = await request.json()
        if asked["model"] == "missing":
            error = {"message": "no such model", "type": "invalid_request_error", "code": "404"}
            return Response(json.dumps({"error": error}), 404)
        said = talk(asked)
        if not asked.get("stream"):
            return Response(json.dumps(response(*said)), media_type="application/json")
        return Response(stream(*said), media_type="text/event-stream")

    return app


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    policy = write_policy(tmp_path_factory.mktemp("policy"), **BLOCK)
    with served(make_upstream()) as upstream:
        side = make_app(Settings(upstream=upstream, policy=str(policy)), {"harm": detector()})
        with (
            served(side) as url,
            openai.OpenAI(base_url=url, api_key="any", max_retries=0) as caller,
        ):
            yield caller


def ask(client: openai.OpenAI, given: Any = "hello", **more: Any) -> Any:
    return client.responses.create(**{"model": "up", "input": given, **more})


def show(*content: Json) -> Any:
    return [{"role": "user", "content": [{"type": "input_text", "text": "look"}, *content]}]


def test_whole(client: openai.OpenAI) -> None:
    fine = ask(client)
    assert (fine.status, fine.output_text, fine.usage.input_tokens) == (
        "completed",
        "It is fine.",
        7,
    )
    for given in ("harm me", show(picture())):
        refused = ask(client, given)
        assert refused.status == "incomplete"
        assert refused.incomplete_details.reason == "content_filter"
        assert refused.output_text == "<no>"
        assert refused.output[0].content[1].refusal == "<no>"
        with pytest.raises(openai.BadRequestError, match="mended or withheld here"):
            ask(client, "go on", previous_response_id=refused.id)


@pytest.mark.parametrize(("given", "said"), [("hello", "It is fine."), ("harm me", "<no>")])
def test_streams(client: openai.OpenAI, given: str, said: str) -> None:
    events = list(ask(client, given, stream=True))
    texts = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(texts) == said
    last = events[-1].response
    assert last.output_text == said
    assert last.status == ("completed" if given == "hello" else "incomplete")
    with client.responses.stream(model="up", input=given) as made:
        kinds = [event.type for event in made]
    assert kinds[-1] == f"response.{last.status}"


def test_tools(client: openai.OpenAI) -> None:
    made = ask(client, tools=[TOOL]).output[1]
    assert (made.name, made.arguments) == ("look_up", '{"city": "Paris"}')
    with client.responses.stream(model="up", input="x", tools=[TOOL]) as events:
        final: Any = events.get_final_response().output[1]
    assert final.arguments == '{"city": "Paris"}'
    told = {"type": "function_call_output", "call_id": made.call_id, "output": "rain"}
    again = ask(client, [made.model_dump(), told])
    assert again.output_text == "It is fine."


class Color(BaseModel):
    color: str


def test_structured_output(client: openai.OpenAI) -> None:
    made = client.responses.parse(model="up", input="x", text_format=Color)
    assert made.output_parsed == Color(color="red")
    refused = client.responses.parse(model="up", input="harm me", text_format=Color)
    assert refused.output_parsed is None
    assert refused.status == "incomplete"


def test_errors_keep_their_class(client: openai.OpenAI) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.NotFoundError, match="no such model"):
            ask(client, model="missing", stream=streamed)
    with pytest.raises(openai.BadRequestError, match="at least one item"):
        ask(client, [])
    with pytest.raises(openai.BadRequestError, match="unchecked"):
        ask(client, background=True)
    with pytest.raises(openai.NotFoundError, match="only new responses are served"):
        client.responses.retrieve("resp_up")
    with pytest.raises(openai.BadRequestError, match="no PNG"):
        ask(client, show(picture("data:image/png;base64,AAAA")))
