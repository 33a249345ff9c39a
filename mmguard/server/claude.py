"""Anthropic's messages before a server that speaks them: guarded whole or streamed."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Request as Call
from fastapi.responses import JSONResponse, Response

from mmguard import sse
from mmguard.errors import ImageError, MmguardError, ModelError
from mmguard.models.openai import OpenAIModel, load
from mmguard.server import blocks, wire
from mmguard.server.exchange import Branch, Feed
from mmguard.server.failures import tell
from mmguard.server.form import Form
from mmguard.server.sidecar import Sidecar
from mmguard.server.speech import Speech
from mmguard.server.talk import Talk, Turn, Whole, answered, counted
from mmguard.types import AnyRequest, Guarded, Reply, Usage

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
        return await explained(answer(sidecar, call))

    @router.post("/v1/messages/count_tokens")
    async def count(call: Call) -> Response:
        return await explained(tally(sidecar, call))

    return router


async def explained(work: Coroutine[Any, Any, Response]) -> Response:
    """The answer, or a failure in Anthropic's form."""
    try:
        return await work
    except MmguardError as exc:
        status, body, more = tell(exc)
        return JSONResponse(blocks.error(status, body), status, more)


async def answer(sidecar: Sidecar, call: Call) -> Response:
    talk = await open_talk(sidecar, call, await sidecar.body(call))
    policy = sidecar.policy(call, talk.body)
    return await answered(sidecar, call, policy, talk, broken)


async def tally(sidecar: Sidecar, call: Call) -> Response:
    talk = await open_talk(sidecar, call, await sidecar.body(call))
    sidecar.policy(call, talk.body)
    return await counted(sidecar, call, talk, "messages/count_tokens")


async def open_talk(sidecar: Sidecar, call: Call, body: wire.Json) -> Message:
    """The body as values, its pictures fetched and inlined."""
    found, most = list(blocks.pictures(body)), sidecar.settings.images
    if len(found) > most:
        raise ImageError(f"{len(found)} pictures: send at most {most} in one request")
    addresses = [blocks.locate(block) for block in found]
    images = await asyncio.gather(*map(sidecar.fetch, addresses))
    known = {id(block): image for block, image in zip(found, images, strict=True)}
    request = blocks.read(body, known)
    return Message(forward(sidecar, call), blocks.enclose(body, known), request, FORM)


def forward(sidecar: Sidecar, call: Call) -> OpenAIModel:
    """The upstream, asked under Anthropic's headers."""
    upstream = copy.copy(sidecar.forward(call))
    upstream.headers = own_headers(sidecar, call, upstream.headers)
    return upstream


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


class Message(Talk):
    """An exchange whose one choice is the upstream's message."""

    def take(self, answer: wire.Json) -> wire.Json:
        if not isinstance(answer.get("content"), list):
            raise ModelError("the server's message has no content", body=wire.dump(answer))
        return {"message": answer, "finish_reason": answer.get("stop_reason")}

    def tokens(self, answer: Mapping[str, Any]) -> Usage:
        return blocks.read_usage(answer)

    def empty(self) -> wire.Json:
        return blocks.empty(str(self.body.get("model", "")))

    def mend(self, answer: wire.Json, guarded: Guarded) -> wire.Json:
        return blocks.mend(answer, guarded)

    def model(self) -> Claude:
        return Claude(self.upstream, self)

    def listen(self, branch: Branch) -> tuple[Feed, Speech]:
        feed = Events(self, [branch])
        return feed, Speaker(branch, feed, True)


class Claude(Whole):
    """The upstream as whoever mends."""

    def write(self, request: AnyRequest) -> wire.Json:
        return blocks.write(request, str(self.talk.body.get("model", "")))

    def read(self, answer: wire.Json) -> Reply:
        self.talk.take(answer)
        finish = "length" if answer.get("stop_reason") == "max_tokens" else "stop"
        return Reply(blocks.speak(answer), finish, blocks.read_usage(answer))


# -- streamed -----------------------------------------------------------------


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
        if "usage" in told:
            start = blocks.read_usage(self.first.get("message") or {})
            spent = Usage(start.prompt, blocks.read_usage(told).completion)
            self.asides.append((b"", {"usage": wire.usage_of(spent)}))
        delta = told.get("delta")
        finish = delta.get("stop_reason") if isinstance(delta, dict) else None
        choice = {"event": told, "finish_reason": finish}
        self.branches[0].queue.put_nowait((event.raw, choice))


class Speaker(Turn):
    """What one message sends. `place` is the block that the client has open, `next` its next."""

    def __init__(self, branch: Branch, feed: Feed, in_content: bool) -> None:
        super().__init__(branch, feed, in_content)
        self.place, self.next, self.is_text = -1, 0, False

    def follow(self, event: Any) -> None:
        """Keep in mind what the client has got."""
        match event:
            case {"type": "content_block_start", "index": int(index)}:
                self.place, self.next = index, index + 1
                block = event.get("content_block")
                self.is_text = isinstance(block, dict) and block.get("type") == "text"
            case {"type": "content_block_stop"}:
                self.place = -1

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
