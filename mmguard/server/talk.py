"""One answer to one request, in a form that is not a chat's: what all such forms share.

The flow, its branch and its ledger are chat's; only what stands on the wire is another's.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request as Call
from fastapi.responses import Response

from mmguard import drive, guard, sse
from mmguard.models.errand import Extensions
from mmguard.models.openai import OpenAIModel, load, refused
from mmguard.policy import Policy
from mmguard.server import wire
from mmguard.server.chat import PLAIN, attended, begin, headers, merge
from mmguard.server.exchange import Branch, Exchange, Feed
from mmguard.server.failures import demand
from mmguard.server.form import Form
from mmguard.server.sidecar import Sidecar
from mmguard.server.spans import watched
from mmguard.server.speech import Speech
from mmguard.types import AnyRequest, Guarded, Reply, Request, Usage


class Talk(Exchange):
    """An exchange whose one choice is all that the upstream answers."""

    def __init__(
        self, upstream: OpenAIModel, body: wire.Json, request: Request, form: Form
    ) -> None:
        super().__init__(upstream, body, request, form)
        self.choices = self.readers = 1

    async def post(self, more: Extensions) -> tuple[bytes, wire.Json]:
        raw, answer = await ask(self.upstream, self.form.path, self.content, more)
        return raw, {"choices": [self.take(answer)], "usage": wire.usage_of(self.tokens(answer))}

    def take(self, answer: wire.Json) -> wire.Json:
        """The choice that an answer is. Raises `ModelError` for what is none."""
        raise NotImplementedError

    def tokens(self, answer: Mapping[str, Any]) -> Usage:
        raise NotImplementedError

    def empty(self) -> wire.Json:
        """An answer that no model was asked for."""
        raise NotImplementedError

    def mend(self, answer: wire.Json, guarded: Guarded) -> wire.Json:
        """An answer with what the guard made of it in the place of what it said."""
        raise NotImplementedError

    def listen(self, branch: Branch) -> tuple[Feed, Speech]:
        """The upstream's events, and who tells them on."""
        raise NotImplementedError


async def ask(
    upstream: OpenAIModel, path: str, content: bytes, more: Extensions | None = None
) -> tuple[bytes, wire.Json]:
    """The upstream's answer as it came, and read. Raises `ModelError` as it refused."""
    told = {"content-type": "application/json", **upstream.headers}
    if more is None:
        response = await upstream.apost(path, content=content, headers=told)
    else:
        with upstream.reported():
            response = await upstream.aclient.post(
                path, content=content, headers=told, extensions=more
            )
    if response.status_code != 200:
        raise refused(response)
    return response.content, load(response.content)


class Whole:
    """The upstream as whoever mends: it answers whole."""

    def __init__(self, upstream: OpenAIModel, talk: Talk) -> None:
        self.upstream, self.talk = upstream, talk

    async def agenerate(self, request: AnyRequest) -> Reply:
        content = wire.dump(self.write(request))
        _, answer = await ask(self.upstream, self.talk.form.path, content)
        return self.read(answer)

    async def astream(self, request: AnyRequest) -> AsyncGenerator[str | Reply, None]:
        reply = await self.agenerate(request)
        yield reply.text
        yield reply

    def write(self, request: AnyRequest) -> wire.Json:
        """A request of the guard's own as a body."""
        raise NotImplementedError

    def read(self, answer: wire.Json) -> Reply:
        """What an answer says. Raises `ModelError` for what is none."""
        raise NotImplementedError


async def answered(
    sidecar: Sidecar,
    call: Call,
    policy: Policy,
    talk: Talk,
    fail: Callable[[Exception], bytes],
) -> Response:
    """One request, whole or streamed."""
    if talk.body.get("stream") is True:
        return await begin(sidecar, policy, call, speak(sidecar, talk, policy), fail)
    return await attended(call, whole(sidecar, talk, policy))


async def counted(sidecar: Sidecar, call: Call, talk: Talk, path: str) -> Response:
    """How many tokens the upstream would read: of what was checked, and no answer."""
    raw, _ = await attended(call, ask(talk.upstream, path, talk.content))
    return Response(raw, 200, PLAIN)


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
    raw, answer = b"", talk.empty()
    if talk.answer:
        raw, body = await talk.whole()
        answer = body["choices"][0]["message"]
    if guarded.action == "pass":
        return Response(raw, 200, told)
    return Response(wire.dump(talk.mend(answer, guarded)), 200, told)


async def speak(sidecar: Sidecar, talk: Talk, policy: Policy) -> AsyncGenerator[bytes, None]:
    """The events as they may leave."""
    feed, turn = talk.listen(Branch(talk, 0, sidecar.scoring))
    turns: Sequence[Speech] = [turn]
    with sidecar.watch.speaking(feed, turns):
        async with aclosing(merge(feed, turns, policy)) as pieces:
            async for piece in pieces:
                yield piece


class Turn(Speech):
    """What one answer sends; it keeps in mind what the client has got."""

    async def run(self, policy: Policy) -> AsyncIterator[bytes]:
        async for piece in super().run(policy):
            for event in sse.Parser().feed(piece):
                self.see(event)
            yield piece

    def see(self, event: sse.Event) -> None:
        self.follow(json.loads(event.data))

    def follow(self, event: Any) -> None:
        """Keep in mind what the client has got."""
        raise NotImplementedError

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
        """Text of our own, where the client reads text."""
        raise NotImplementedError

    def finish(self, guarded: Guarded) -> bytes:
        raise NotImplementedError
