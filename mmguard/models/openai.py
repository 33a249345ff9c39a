"""Any OpenAI-compatible chat server as a model, over httpx.

Speaks `POST {url}/chat/completions`, whole or as server-sent events. Fields that mmguard
does not know travel both ways; an upstream error keeps its status and body.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import math
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmguard.errors import MissingExtra, ModelError
from mmguard.models.errand import Errand, Extensions
from mmguard.sse import Parser
from mmguard.types import AnyRequest, Image, Message, Reply, Text, TextMessage, Usage

if TYPE_CHECKING:
    import httpx

CHAT = "chat/completions"
# When to ask again, as servers and OpenAI's clients tell it each other.
RETRY = ("retry-after", "retry-after-ms", "x-should-retry")
# Pieces of a stream that wait for their reader.
AHEAD = 64


class OpenAIModel:
    """A model behind `url` (up to and with `/v1`).

    `transport` and `atransport` replace httpx's own, in tests. Raises `ModelError` with the
    server's `status` and `body` when it refuses or breaks off.
    """

    def __init__(self, url: str, model: str, *, key: str = "", **http: Any) -> None:
        try:
            import httpx
        except ImportError as exc:
            raise MissingExtra("httpx", "server", "an OpenAI-compatible model") from exc
        self.name, self.httpx, self.headers = model, httpx, dict[str, str]()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport, atransport = http.pop("transport", None), http.pop("atransport", None)
        shared = {"base_url": url, "headers": headers, "timeout": 120, **http}
        self.client = httpx.Client(transport=transport, **shared)
        self.aclient = httpx.AsyncClient(transport=atransport, **shared)

    def named(self, model: str) -> OpenAIModel:
        """The same server, asked for another model."""
        other = copy.copy(self)
        other.name = model
        return other

    def bearing(self, authorization: str) -> OpenAIModel:
        """The same server, asked under another's authorization."""
        other = copy.copy(self)
        other.headers = {"Authorization": authorization}
        return other

    def body(self, request: AnyRequest, *, stream: bool = False) -> dict[str, Any]:
        messages = [write_message(message) for message in request.messages]
        body = {"model": self.name, **request.options, "messages": messages}
        if stream:
            options = {"include_usage": True, **body.get("stream_options", {})}
            body |= {"stream": True, "stream_options": options}
        return body

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        if len(requests) == 1:
            return [self.answer(requests[0])]
        with ThreadPoolExecutor(min(len(requests), 16)) as pool:
            return list(pool.map(self.answer, requests))

    def answer(self, request: AnyRequest) -> Reply:
        with self.reported():
            response = self.client.post(CHAT, json=self.body(request), headers=self.headers)
        return read_reply(response)

    async def agenerate(self, request: AnyRequest) -> Reply:
        response = await self.apost(CHAT, json=self.body(request))
        return read_reply(response)

    async def apost(self, path: str, **content: Any) -> httpx.Response:
        """A call that may be cancelled, whose answer has any status."""
        told = {"headers": self.headers, **content}
        with self.reported():
            return await Errand(
                lambda more: self.aclient.post(path, extensions=more, **told)
            ).result()

    def stream(self, request: AnyRequest) -> Generator[str | Reply, None, None]:
        events = Events()
        body = self.body(request, stream=True)
        with (
            self.reported(),
            self.client.stream("POST", CHAT, json=body, headers=self.headers) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise refused(response)
            for data in response.iter_bytes():
                yield from events.feed(data)
            yield events.close()

    async def astream(self, request: AnyRequest) -> AsyncGenerator[str | Reply, None]:
        queue: asyncio.Queue[str | Reply | Exception] = asyncio.Queue(AHEAD)
        errand = Errand(lambda more: self.pour(request, queue, more))
        try:
            while isinstance(item := await queue.get(), str):
                yield item
            if isinstance(item, Exception):
                raise item
            yield item
        finally:
            errand.leave()

    async def pour(
        self, request: AnyRequest, queue: asyncio.Queue[str | Reply | Exception], more: Extensions
    ) -> None:
        """The stream into the queue, and last its reply or its failure."""
        events, body = Events(), self.body(request, stream=True)
        try:
            with self.reported():
                async with self.aclient.stream(
                    "POST", CHAT, json=body, headers=self.headers, extensions=more
                ) as response:
                    if response.status_code != 200:
                        await response.aread()
                        raise refused(response)
                    async for data in response.aiter_bytes():
                        for piece in events.feed(data):
                            await queue.put(piece)
            await queue.put(events.close())
        except Exception as exc:
            await queue.put(exc)

    @contextmanager
    def reported(self) -> Iterator[None]:
        try:
            yield
        except self.httpx.HTTPError as exc:
            raise ModelError(f"model {self.name!r} cannot be reached: {exc!r}") from exc

    def close(self) -> None:
        self.client.close()


class Events:
    """The events of one completion, fed bytes as they come."""

    def __init__(self) -> None:
        self.parser, self.pieces = Parser(), list[str]()
        self.finish, self.usage, self.done = "", Usage(), False

    def feed(self, data: bytes) -> Iterator[str]:
        """The text in every event that these bytes complete."""
        for event in self.parser.feed(data):
            yield from self.take(event.data)

    def take(self, data: bytes) -> Iterator[str]:
        if data == b"[DONE]":
            self.done = True
            return
        event = load(data)
        if "error" in event:
            raise ModelError(f"the stream broke off: {event['error']}", body=data)
        self.usage = read_usage(event) if event.get("usage") else self.usage
        for choice in event.get("choices", [])[:1]:
            self.finish = choice.get("finish_reason") or self.finish
            if text := choice.get("delta", {}).get("content"):
                self.pieces.append(text)
                yield text

    def close(self) -> Reply:
        """The whole reply; `ModelError` if the stream ended before it did."""
        if not self.done and not self.finish:
            raise ModelError("the stream ended before its answer did")
        return Reply("".join(self.pieces), self.finish or "stop", self.usage)


def write_message(message: Message | TextMessage) -> dict[str, Any]:
    """A message in OpenAI's form; one of plain words keeps its plain form."""
    extra = message.extra if isinstance(message, Message) else {}
    words = [part.text for part in message.parts if isinstance(part, Text)]
    if len(words) == len(message.parts) <= 1:
        return {"role": message.role, "content": words[0] if words else None, **extra}
    return {"role": message.role, "content": [write_part(p) for p in message.parts], **extra}


def write_part(part: Any) -> Any:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        uri = f"data:{part.mime};base64,{base64.b64encode(part.data).decode()}"
        return {"type": "image_url", "image_url": {"url": uri, **part.extra}}
    return part.raw


def load(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"the server sent no JSON: {data[:80]!r}", body=data) from exc
    if not isinstance(value, dict):
        raise ModelError(f"the server sent {type(value).__name__}, not an object", body=data)
    return value


def refused(response: httpx.Response) -> ModelError:
    """The failure that a server tells by its status; the response has been read."""
    status, body = response.status_code, response.content
    error = ModelError(f"the server answered {status}: {body[:200]!r}", status=status, body=body)
    told = {name: response.headers.get(name, "") for name in RETRY}
    error.retry = {name: value for name, value in told.items() if value and value.isascii()}
    return error


def read_reply(response: httpx.Response) -> Reply:
    """The first choice of a completion; the whole body stays in `raw`."""
    if response.status_code != 200:
        raise refused(response)
    status, data = response.status_code, response.content
    body = load(data)
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
    except (KeyError, IndexError, TypeError, AttributeError) as exc:
        raise ModelError(
            "the server's completion has no message", status=status, body=data
        ) from exc
    finish = choice.get("finish_reason") or "stop"
    return Reply(text, finish, read_usage(body), read_first(choice), raw=body)


def read_usage(body: Mapping[str, Any]) -> Usage:
    usage = body.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), cached)


def read_first(choice: Mapping[str, Any]) -> dict[str, float]:
    """Probabilities of the first token, where the server was asked for logprobs and gave them."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    top = tokens[0].get("top_logprobs", []) if tokens else []
    return {entry["token"]: math.exp(entry["logprob"]) for entry in top}
