"""Anthropic's messages before a server that speaks them: guarded whole or streamed.

The flow, its branch and its ledger are chat's; only what stands on the wire is another's.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request as Call
from fastapi.responses import JSONResponse, Response

from mmguard import drive, guard, sse
from mmguard.errors import ImageError, MmguardError, ModelError
from mmguard.models.openai import OpenAIModel, load, refused
from mmguard.policy import Policy
from mmguard.server import blocks, wire
from mmguard.server.chat import PLAIN, attended, begin, headers, merge
from mmguard.server.exchange import Branch, Exchange, Feed
from mmguard.server.failures import demand, tell
from mmguard.server.form import Form
from mmguard.server.sidecar import Sidecar
from mmguard.server.spans import watched
from mmguard.server.speech import Speech
from mmguard.types import AnyRequest, Guarded, Reply

FORM = Form(
    "messages",
    "message",
    "message",
    lambda choice: blocks.speaking(choice["message"]),
    lambda choice: blocks.hear(choice["event"]),
    wire.mend,
    dict,
    bare=True,
)
VERSION = "2023-06-01"
OWN_KEY = "sk-ant-api"


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(call: Call) -> Response:
        try:
            return await answered(sidecar, call)
        except MmguardError as exc:
            status, body, more = tell(exc)
            return JSONResponse(blocks.error(status, body), status, more)

    return router


async def answered(sidecar: Sidecar, call: Call) -> Response:
    policy = sidecar.policy(call)
    talk = await open_talk(sidecar, call, await sidecar.body(call))
    if talk.body.get("stream") is True:
        return await begin(sidecar, policy, call, speak(sidecar, talk, policy), broken)
    async with sidecar.room():
        return await attended(call, whole(sidecar, talk, policy))


async def open_talk(sidecar: Sidecar, call: Call, body: wire.Json) -> Talk:
    """The body as values, its pictures fetched and inlined."""
    found, most = list(blocks.pictures(body)), sidecar.settings.images
    if len(found) > most:
        raise ImageError(f"{len(found)} pictures: send at most {most} in one request")
    images = await asyncio.gather(*(sidecar.fetch(blocks.locate(block)) for block in found))
    known = {id(block): image for block, image in zip(found, images, strict=True)}
    request = blocks.read(body, known)
    upstream = copy.copy(sidecar.forward(call))
    upstream.headers = own_headers(sidecar, call, upstream.headers)
    return Talk(upstream, blocks.enclose(body, known), request, FORM)


def own_headers(sidecar: Sidecar, call: Call, borne: Mapping[str, str]) -> dict[str, str]:
    """The upstream's key, which is the caller's where none is set, and what is Anthropic's.

    Other servers know a key in `Authorization` alone, and Anthropic takes none of its own there.
    """
    names, key = ("anthropic-version", "anthropic-beta"), sidecar.settings.upstream_key
    told = {"anthropic-version": VERSION}
    told |= {name: call.headers[name] for name in names if name in call.headers}
    if not key and not sidecar.settings.keys:
        key = call.headers.get("x-api-key", "")
    kept = {} if key.startswith(OWN_KEY) else borne
    return {**kept, **told, **({"x-api-key": key} if key else {})}


class Talk(Exchange):
    """An exchange whose one choice is the upstream's message."""

    async def post(self) -> tuple[bytes, wire.Json]:
        raw, message = await post(self.upstream, self.body)
        choice = {"message": message, "finish_reason": message.get("stop_reason")}
        return raw, {"choices": [choice]}

    def model(self) -> Claude:
        return Claude(self.upstream, str(self.body.get("model", "")))


async def post(upstream: OpenAIModel, body: wire.Json) -> tuple[bytes, wire.Json]:
    """The upstream's message as it came, and read. Raises `ModelError` as it refused."""
    told = {"content-type": "application/json", **upstream.headers}
    with upstream.reported():
        response = await upstream.aclient.post(FORM.path, content=wire.dump(body), headers=told)
    if response.status_code != 200:
        raise refused(response.status_code, response.content)
    message = load(response.content)
    if not isinstance(message.get("content"), list):
        raise ModelError("the server's message has no content", body=response.content)
    return response.content, message


class Claude:
    """The upstream as whoever mends: it answers whole."""

    def __init__(self, upstream: OpenAIModel, name: str) -> None:
        self.upstream, self.name = upstream, name

    async def agenerate(self, request: AnyRequest) -> Reply:
        _, message = await post(self.upstream, blocks.write(request, self.name))
        finish = "length" if message.get("stop_reason") == "max_tokens" else "stop"
        return Reply(blocks.speak(message), finish, blocks.read_usage(message))

    async def astream(self, request: AnyRequest) -> AsyncGenerator[str | Reply, None]:
        reply = await self.agenerate(request)
        yield reply.text
        yield reply


# -- whole --------------------------------------------------------------------


async def whole(sidecar: Sidecar, talk: Talk, policy: Policy) -> Response:
    start = time.perf_counter()
    try:
        branch = Branch(talk, 0, sidecar.scoring)
        guarded = await drive.arun(watched(guard(talk.request, policy)), branch)
    finally:
        talk.leave()
    sidecar.watch.note(talk, [guarded])
    demand(guarded)
    told = PLAIN | headers([guarded], start)
    raw, message = b"", blocks.empty(str(talk.body.get("model", "")))
    if talk.answer:
        raw, body = await talk.whole()
        message = body["choices"][0]["message"]
    if guarded.action == "pass":
        return Response(raw, 200, told)
    return Response(wire.dump(blocks.mend(message, guarded)), 200, told)


# -- streamed -----------------------------------------------------------------


async def speak(sidecar: Sidecar, talk: Talk, policy: Policy) -> AsyncGenerator[bytes, None]:
    """The events as they may leave."""
    async with sidecar.room():
        branch = Branch(talk, 0, sidecar.scoring)
        feed = Events(talk, [branch])
        turns = [Turn(branch, feed, True)]
        with sidecar.watch.speaking(feed, turns):
            async with aclosing(merge(feed, turns, policy)) as pieces:
                async for piece in pieces:
                    yield piece


def broken(exc: Exception) -> bytes:
    status, body, _ = tell(exc)
    return blocks.event("error", error=blocks.error(status, body)["error"])


class Events(Feed):
    """The upstream's events, each with what it says; `first` starts the message."""

    def sort(self, event: sse.Event) -> None:
        told = load(event.data)
        if told.get("type") == "error":
            raise ModelError(f"the stream broke off: {told.get('error')}", body=event.data)
        self.first = self.first or told
        delta = told.get("delta")
        finish = delta.get("stop_reason") if isinstance(delta, dict) else None
        choice = {"event": told, "finish_reason": finish}
        self.branches[0].queue.put_nowait((event.raw, choice))


class Turn(Speech):
    """What one message sends. `place` is the block that the client has open, `next` its next."""

    def __init__(self, branch: Branch, feed: Feed, in_content: bool) -> None:
        super().__init__(branch, feed, in_content)
        self.place, self.next, self.is_text = -1, 0, False

    async def run(self, policy: Policy) -> AsyncIterator[bytes]:
        async for piece in super().run(policy):
            for event in sse.Parser().feed(piece):
                self.follow(json.loads(event.data))
            yield piece

    def follow(self, event: Any) -> None:
        """Keep in mind what the client has got."""
        match event:
            case {"type": "content_block_start", "index": int(index)}:
                self.place, self.next = index, index + 1
                self.is_text = event["content_block"].get("type") == "text"
            case {"type": "content_block_stop"}:
                self.place = -1

    def end(self, guarded: Guarded, held: str) -> bytes:
        if guarded.action == "pass":
            return self.branch.ledger.flush()
        said = self.say(content=held) if held else self.owed()
        return said + self.finish(guarded)

    def say(self, **fields: str) -> bytes:
        return self.owed() + self.write(fields["content"])

    def owed(self) -> bytes:
        ledger = self.branch.ledger
        owed, ledger.sent = ledger.owed, ledger.gone
        return self.write(owed) if owed else b""

    def write(self, text: str) -> bytes:
        """Text of our own, in the open block if that is one of text, else in a new one."""
        made = self.start() + (b"" if self.is_text and self.place >= 0 else self.turn())
        delta = {"type": "text_delta", "text": text}
        return made + blocks.event("content_block_delta", index=self.place, delta=delta)

    def start(self) -> bytes:
        """The message's beginning, with the upstream's name and usage if it had begun."""
        if self.begun:
            return b""
        self.begun = True
        message = blocks.empty(str(self.branch.exchange.body.get("model", "")))
        told = self.feed.first.get("message") or {}
        kept = {name: told[name] for name in ("id", "model", "usage") if name in told}
        usage = {"usage": {"input_tokens": 0, "output_tokens": 0}}
        return blocks.event("message_start", message={**message, **usage, **kept})

    def turn(self) -> bytes:
        """A block of text after what is open."""
        made = self.shut()
        self.place, self.next, self.is_text = self.next, self.next + 1, True
        block = {"type": "text", "text": ""}
        return made + blocks.event("content_block_start", index=self.place, content_block=block)

    def shut(self) -> bytes:
        place, self.place = self.place, -1
        return blocks.event("content_block_stop", index=place) if place >= 0 else b""

    def finish(self, guarded: Guarded) -> bytes:
        told = self.feed.first.get("message") or {}
        spent = blocks.read_usage(told).completion + wire.extra_usage([guarded]).completion
        usage = {"output_tokens": spent}
        made = self.start() + self.shut()
        made += blocks.event("message_delta", delta=blocks.ending(guarded), usage=usage)
        return made + blocks.event("message_stop")
