"""Anthropic's messages, whole and streamed, an upstream that says them, and a caller."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx

from tests.upstream import Cuts, Handler, Json, client, cut
from tests.world import png

ASK: Json = {
    "model": "up",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "what is this?"}],
}
BLOCK: Json = {"refusals": {"default": "<no>", "cut": "<cut>"}}
WINDOW: Json = {"stream": {"mode": "window", "window": 6, "hold": 3}}
USAGE = {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 3}
HEAD = {"id": "msg_up", "type": "message", "role": "assistant", "model": "up"}
DATA = base64.b64encode(png()).decode()


def picture(**source: str) -> Json:
    held = {"type": "base64", "media_type": "image/png", "data": DATA}
    return {"type": "image", "source": source or held}


def words(text: str) -> Json:
    return {"type": "text", "text": text}


def message(*content: Json, **more: Any) -> Json:
    ended = {"stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE}
    return {**HEAD, "content": list(content), **ended, **more}


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def stream(*content: tuple[Json, list[Json]]) -> bytes:
    """A message's events: its blocks, each as it starts and by its deltas."""
    start: Json = {
        **HEAD,
        "content": [],
        "stop_reason": None,
        "usage": {**USAGE, "output_tokens": 1},
    }
    made = [event("message_start", message=start), event("ping")]
    for i, (block, deltas) in enumerate(content):
        made.append(event("content_block_start", index=i, content_block=block))
        made += [event("content_block_delta", index=i, delta=delta) for delta in deltas]
        made.append(event("content_block_stop", index=i))
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    made.append(event("message_delta", delta=delta, usage={"output_tokens": 5}))
    return b"".join(made) + event("message_stop")


def talk(*pieces: str) -> tuple[Json, list[Json]]:
    return words(""), [{"type": "text_delta", "text": piece} for piece in pieces]


def says(body: Json | bytes, status: int = 200, *ends: int) -> Handler:
    """An upstream that says this, and mends what it is asked to write anew."""

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/messages"
        asked = json.loads(request.content)
        if "anew" in json.dumps(asked):
            assert asked["max_tokens"] == 50
            return httpx.Response(200, content=json.dumps(message(words("mended"))))
        if isinstance(body, bytes):
            return httpx.Response(status, stream=Cuts(cut(body, ends)))
        return httpx.Response(status, content=json.dumps(body, indent=1))

    return handler


def post(handler: Handler, policy: Path, **body: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        async with client(handler, policy) as caller:
            return await caller.post("messages", json={**ASK, **body})

    return asyncio.run(call())


def listen(handler: Handler, policy: Path, **body: Any) -> tuple[bytes, list[Json]]:
    """The bytes of a stream, and its events, each under its own name."""
    data = post(handler, policy, stream=True, **body).content
    found = []
    for framed in data.decode().split("\n\n")[:-1]:
        name, told = framed.split("\n")
        found.append(json.loads(told.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return data, found


def spoken(events: list[Json]) -> str:
    return "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")


def ends(events: list[Json]) -> list[str]:
    return [e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta"]


def well_formed(events: list[Json]) -> None:
    """One start, one end, each block opened and shut in turn, and text in blocks of text."""
    kinds = [e["type"] for e in events if e["type"] != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("message_start") == kinds.count("message_delta") == 1
    place, seen, kind = None, -1, ""
    for told in events:
        if told["type"] == "content_block_start":
            assert place is None
            place, seen = told["index"], seen + 1
            assert place == seen
            kind = told["content_block"]["type"]
        elif told["type"].startswith("content_block"):
            assert told["index"] == place
            assert kind == "text" or told.get("delta", {}).get("type") != "text_delta"
            place = None if told["type"] == "content_block_stop" else place
    assert place is None
