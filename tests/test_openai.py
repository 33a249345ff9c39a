"""The OpenAI adapter over a scripted transport, and a real server on loopback."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, strategies as st

from mmguard import wrap
from mmguard.errors import ModelError
from mmguard.models.openai import Events, OpenAIModel
from mmguard.types import (
    Image,
    Message,
    Opaque,
    Reply,
    Request,
    Text,
    TextMessage,
    TextRequest,
    Usage,
)
from tests.server import serve
from tests.world import PICTURE, ask

Handler = Callable[[httpx.Request], httpx.Response]


def completion(text: str = "hello", **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c1",
        "vendor": {"kept": True},
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }


def model(handler: Handler) -> OpenAIModel:
    transport = httpx.MockTransport(handler)
    return OpenAIModel("http://up.test/v1", "m", key="k", transport=transport, atransport=transport)


def answers(body: Any, status: int = 200) -> OpenAIModel:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return model(lambda request: httpx.Response(status, content=content))


def test_request_on_the_wire() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=completion())

    part = Image(PICTURE.data, extra={"detail": "low"})
    raw = {"type": "input_audio", "input_audio": {}}
    messages = (
        Message("system", (Text("be kind"),)),
        Message("user", (part, Opaque("input_audio", raw), Text("hi"))),
        Message("assistant", (), {"tool_calls": []}),
    )
    request = Request(messages, {"seed": 4, "vendor": {"a": 1}})
    assert model(handler).generate([request])[0].text == "hello"
    body = json.loads(seen[0].content)
    assert str(seen[0].url) == "http://up.test/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer k"
    assert (body["model"], body["seed"], body["vendor"]) == ("m", 4, {"a": 1})
    assert body["messages"][0] == {"role": "system", "content": "be kind"}
    assert body["messages"][1]["content"][0]["image_url"]["detail"] == "low"
    assert body["messages"][1]["content"][1] == raw
    assert body["messages"][2] == {"role": "assistant", "content": None, "tool_calls": []}


def test_reply() -> None:
    top = [{"token": "Yes", "logprob": math.log(0.75)}, {"token": "No", "logprob": math.log(0.25)}]
    body = completion("Yes", logprobs={"content": [{"token": "Yes", "top_logprobs": top}]})
    reply = answers(body).generate([ask()])[0]
    assert reply.usage == Usage(3, 1)
    assert reply.first == pytest.approx({"Yes": 0.75, "No": 0.25})
    assert reply.raw == body


@pytest.mark.parametrize("details", [{"cached_tokens": 2}, {"cached_tokens": None}, {}, None])
def test_cached_tokens(details: dict[str, Any] | None) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": details}
    reply = answers({**completion(), "usage": usage}).generate([ask()])[0]
    assert reply.usage == Usage(3, 1)
    assert reply.usage.cached == (2 if details == {"cached_tokens": 2} else 0)


def test_order_is_kept() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, json=completion(json.loads(request.content)["messages"][0]["content"])
        )

    rows = [ask(str(i)) for i in range(20)]
    assert [r.text for r in model(handler).generate(rows)] == [str(i) for i in range(20)]


def test_async_side() -> None:
    reply = asyncio.run(answers(completion()).agenerate(ask()))
    assert (reply.text, reply.usage) == ("hello", Usage(3, 1))


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"error": {"message": "slow down"}}, 429, "answered 429"),
        (b"<html>", 200, "no JSON"),
        ([1], 200, "list, not an object"),
        ({"choices": []}, 200, "no message"),
        ({"choices": [{"message": None}]}, 200, "no message"),
    ],
)
def test_upstream_errors(body: Any, status: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        answers(body, status).generate([ask()])
    assert caught.value.status == (status if status != 200 or "no message" in reason else None)
    assert caught.value.body


def test_unreachable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ModelError, match="cannot be reached"):
        model(refuse).generate([ask()])


def chunk(text: str | None = None, **fields: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, **fields}]}


def sse(*events: dict[str, Any], done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return (": beat\n\n" + "".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
WHOLE = sse(chunk(""), chunk("hé"), chunk("llo"), chunk(finish_reason="length"), USAGE)
EXPECTED = Reply("héllo", "length", Usage(3, 2))


def test_stream() -> None:
    seen: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, content=WHOLE)

    assert list(model(handler).stream(ask())) == ["hé", "llo", EXPECTED]
    assert seen[0]["stream"] is True
    assert seen[0]["stream_options"] == {"include_usage": True}

    async def collect() -> list[Any]:
        return [piece async for piece in model(handler).astream(ask())]

    assert asyncio.run(collect()) == ["hé", "llo", EXPECTED]


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_events_in_any_pieces(cuts: list[int]) -> None:
    events, text = Events(), ""
    bounds = [0, *sorted(cuts), len(WHOLE)]
    for start, end in itertools.pairwise(bounds):
        text += "".join(events.feed(WHOLE[start:end]))
    assert text == "héllo"
    assert events.close() == EXPECTED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (sse(chunk("half"), done=False), "ended before"),
        (b"", "ended before"),
        (sse(chunk("a"), {"error": {"message": "overloaded"}}), "broke off"),
        (b"data: {]\n\n", "no JSON"),
    ],
)
def test_broken_streams(body: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        list(answers(body).stream(ask()))


def test_refused_streams() -> None:
    refusing = answers({"error": "no"}, 401)
    with pytest.raises(ModelError) as caught:
        list(refusing.stream(ask()))
    assert caught.value.status == 401

    async def collect() -> None:
        async for _ in refusing.astream(ask()):
            pass

    with pytest.raises(ModelError, match="answered 401"):
        asyncio.run(collect())


def test_guarded_over_the_wire() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        pictures = "image_url" in json.dumps(body["messages"])
        text = "a red thing" if pictures else "an answer with eyes closed"
        if pictures and "Do not answer" not in json.dumps(body["messages"]):
            text = "sure, here is how to hack into an account"
        return httpx.Response(200, json=completion(text))

    guarded = wrap(model(handler)).chat(ask("how?", PICTURE))
    assert (guarded.text, guarded.step) == ("an answer with eyes closed", "caption")
    assert guarded.draft is not None
    assert guarded.draft.raw["vendor"] == {"kept": True}


def test_eyes_closed_requests_are_plain() -> None:
    request = TextRequest((TextMessage("user", "hi"),), {"seed": 1, "images": ["x"]})
    body = answers(completion()).body(request)
    assert body == {"model": "m", "seed": 1, "messages": [{"role": "user", "content": "hi"}]}


def test_close() -> None:
    closing = answers(completion())
    closing.close()
    assert closing.client.is_closed


def tempted(body: dict[str, Any]) -> str:
    asked = json.dumps(body["messages"])
    if "Do not answer it" in asked:
        return "a red square"
    return "Sure, here is how to hack into it." if "image_url" in asked else "With eyes closed."


def test_a_real_server() -> None:
    with serve(tempted) as url:
        upstream = OpenAIModel(url, "m")
        wrapped = wrap(
            upstream, policy={"extends": "balanced", "output": [{"detector": "phrases"}]}
        )
        whole = wrapped.chat(ask("what now?", PICTURE))
        assert (whole.text, whole.step, whole.closed) == ("With eyes closed.", "caption", True)
        assert "".join(wrapped.stream(ask("hello"))) == "With eyes closed. "

        async def both() -> list[str]:
            guarded = [wrapped.achat(ask("hello")) for _ in range(5)]
            texts = [g.text for g in await asyncio.gather(*guarded)]
            await upstream.aclient.aclose()
            return texts

        assert asyncio.run(both()) == ["With eyes closed."] * 5
        upstream.close()
