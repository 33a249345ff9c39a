"""The official Anthropic client, unmodified, against the sidecar before a real upstream process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from tests.loopback import served
from tests.talks import BLOCK, message, picture, stream, talk, words
from tests.upstream import detector, write_policy
from tests.world import BAD


def make_upstream() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        asked = await request.json()
        bad = "harm me" in json.dumps(asked) or '"image"' in json.dumps(asked)
        said = f"some {BAD} words" if bad else "It is fine."
        if not asked.get("stream"):
            return Response(json.dumps(message(words(said))), media_type="application/json")
        return Response(stream(talk(*said.partition(" "))), media_type="text/event-stream")

    return app


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    policy = write_policy(tmp_path_factory.mktemp("policy"), **BLOCK)
    with served(make_upstream()) as upstream:
        side = make_app(Settings(upstream=upstream, policy=str(policy)), {"harm": detector()})
        with served(side) as url:
            base = url.removesuffix("/v1")
            yield anthropic.Anthropic(base_url=base, api_key="any", max_retries=0)


def ask(caller: anthropic.Anthropic, *content: Any) -> anthropic.types.Message:
    turn: Any = {"role": "user", "content": list(content)}
    return caller.messages.create(model="up", max_tokens=50, messages=[turn])


def test_the_official_client(caller: anthropic.Anthropic) -> None:
    fine = ask(caller, words("hello"))
    assert (fine.stop_reason, fine.usage.input_tokens) == ("end_turn", 7)
    for content in ([words("harm me")], [words("look"), picture()]):
        refused = ask(caller, *content)
        assert refused.stop_reason == "refusal"
        [said] = refused.content
        assert said.type == "text"
        assert said.text == "<no>"
    with pytest.raises(anthropic.BadRequestError, match="no PNG"):
        ask(caller, picture(type="base64", media_type="image/png", data="AAAA"))


def test_the_official_client_streams(caller: anthropic.Anthropic) -> None:
    for text, wanted, reason in (
        ("hello", "It is fine.", "end_turn"),
        ("harm me", "<no>", "refusal"),
    ):
        turn: Any = {"role": "user", "content": text}
        with caller.messages.stream(model="up", max_tokens=50, messages=[turn]) as made:
            assert "".join(made.text_stream) == wanted
            assert made.get_final_message().stop_reason == reason
