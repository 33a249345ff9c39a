"""A model of this process in the place of an upstream server: no socket, the same wire.

Everything else of the sidecar stays as it is before a real server.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from mmguard import messages
from mmguard.drive import AsyncPieces
from mmguard.errors import InputError, ModelError
from mmguard.models.openai import CHAT
from mmguard.runtime import Concurrent, Local
from mmguard.server import wire
from mmguard.sse import DONE, frame
from mmguard.types import Model, Reply, Request, Usage

# Fields of a body that are for a server, and mean nothing to a model.
FOREIGN = frozenset({"messages", "model", "n", "stream", "stream_options", "user", "metadata"})


class ModelTransport(httpx.AsyncBaseTransport):
    """What a server with this model would answer; requests under way share its batches."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.runtime = Concurrent(Local({"target": model}, {}))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            entry = {"id": self.model.name, "object": "model", "created": 0, "owned_by": "mmguard"}
            return answer(200, {"object": "list", "data": [entry]})
        if not request.url.path.endswith(CHAT):
            told = f"the model of this process answers /v1/{CHAT} alone"
            return answer(404, wire.error(told, "invalid_request_error"))
        try:
            body = wire.load(await request.aread())
            if body.get("stream") is True:
                return await self.stream(body)
            return answer(200, await self.whole(body))
        except InputError as exc:
            return answer(400, wire.error(str(exc), "invalid_request_error"))
        except ModelError as exc:
            return answer(502, wire.error(str(exc), "upstream_error"))

    async def whole(self, body: wire.Json) -> wire.Json:
        asked = read(body)
        replies = [await self.runtime.generate("target", asked) for _ in range(wire.count(body))]
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "finish_reason": reply.finish,
                "logprobs": None,
            }
            for i, reply in enumerate(replies)
        ]
        usage = sum((reply.usage for reply in replies), Usage())
        made = wire.empty(str(body.get("model") or self.model.name))
        return {**made, "choices": choices, "usage": wire.usage_of(usage)}

    async def stream(self, body: wire.Json) -> httpx.Response:
        """The first piece is awaited: what fails before it has a status."""
        if wire.count(body) != 1:
            raise InputError("this model streams one choice at a time: leave n out")
        pieces = self.runtime.open("target", read(body))
        first = await anext(pieces)
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=headers, stream=Told(first, pieces, body))


class Told(httpx.AsyncByteStream):
    """A model's pieces as chunks of one completion."""

    def __init__(self, first: str | Reply, pieces: AsyncPieces, body: wire.Json) -> None:
        self.first, self.pieces, self.body = first, pieces, body
        self.shared = wire.empty(str(body.get("model", "")), "chat.completion.chunk")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.chunk({"role": "assistant", "content": ""})
        item: str | Reply = self.first
        while isinstance(item, str):
            yield self.chunk({"content": item})
            item = await anext(self.pieces)
        yield self.chunk({}, item.finish)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            usage = wire.usage_of(item.usage)
            yield frame(wire.dump({**self.shared, "choices": [], "usage": usage}))
        yield DONE

    def chunk(self, delta: wire.Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return frame(wire.dump({**self.shared, "choices": [choice]}))

    async def aclose(self) -> None:
        await self.pieces.aclose()


def read(body: wire.Json) -> Request:
    options = {name: value for name, value in body.items() if name not in FOREIGN}
    return messages.parse(body.get("messages"), options)


def answer(status: int, body: Any) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.Response(status, headers=headers, content=json.dumps(body).encode())
