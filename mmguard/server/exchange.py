"""One request on its way to the server behind: asked once, whatever the number of choices.

An `Exchange` is what all choices share; a `Branch` is the world of one choice's flow.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import move_on_after

from mmguard import sse
from mmguard.drive import AsyncPieces
from mmguard.errors import ModelError
from mmguard.models.errand import Errand, Extensions
from mmguard.models.openai import OpenAIModel, load, refused
from mmguard.runtime import AsyncModel
from mmguard.server import wire
from mmguard.server.form import CHAT, Form
from mmguard.server.ledger import Ledger
from mmguard.types import AnyRequest, Finding, Guarded, Reply, Request, Sample

if TYPE_CHECKING:
    from mmguard.server.watch import Scoring

T = TypeVar("T")
# What belongs to the caller's call, and to no further one.
OWN = frozenset({"n", "stream", "stream_options", "model", "moderation"})
# What is told beside an answer, to a caller who asks.
Annotate = Callable[[Sequence[Guarded]], Awaitable[wire.Json]]


class Exchange:
    """The caller's body with its pictures inlined, the request that it says, and the upstream."""

    def __init__(
        self,
        upstream: OpenAIModel,
        body: wire.Json,
        request: Request,
        form: Form = CHAT,
        data: bytes | None = None,
    ) -> None:
        self.upstream, self.request, self.form = upstream, request, form
        self.choices = wire.count(body)
        self.content = wire.dump(body) if data is None else data
        # What was said, pictures among it, is in the content and in the request.
        self.body = {name: value for name, value in body.items() if name != "messages"}
        self.answer: asyncio.Task[tuple[bytes, wire.Json]] | None = None
        self.wanted = asyncio.Event()
        self.readers = self.choices
        self.errands: list[Errand[Any]] = []
        self.annotate: Annotate | None = None

    async def whole(self) -> tuple[bytes, wire.Json]:
        """The upstream's completion as it came, and read. Raises `ModelError` as it refused."""
        if self.answer is None:
            self.answer = self.send(self.post)
        return await asyncio.shield(self.answer)

    def send(self, work: Callable[[Extensions], Awaitable[T]]) -> asyncio.Task[T]:
        """A call that ends when nobody waits any more."""
        errand = Errand(work)
        self.errands.append(errand)
        return errand.task

    async def post(self, more: Extensions) -> tuple[bytes, wire.Json]:
        with self.upstream.reported():
            response = await self.upstream.aclient.post(
                self.form.path, content=self.content, headers=self.headers, extensions=more
            )
        if response.status_code != 200:
            raise refused(response)
        body = load(response.content)
        choices = body.get("choices")
        if not isinstance(choices, list) or not all(map(self.is_choice, choices)):
            raise ModelError("the server's completion has no choices", body=response.content)
        found = [place(choice, i) for i, choice in enumerate(choices)]
        if not all(0 <= index < self.choices for index in found) or len({*found}) < len(found):
            raise ModelError("the server's completion has choices that nobody asked for")
        return response.content, body

    def is_choice(self, choice: Any) -> bool:
        return isinstance(choice, dict) and isinstance(self.form.whole(choice), Mapping)

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": "application/json", **self.upstream.headers}

    def leave(self) -> None:
        """Nobody waits any more."""
        for errand in self.errands:
            errand.leave()

    def left(self) -> None:
        """One choice needs no more of the stream; after the last one the upstream may stop."""
        self.readers -= 1
        if not self.readers:
            self.leave()

    def model(self) -> AsyncModel:
        """The upstream under the name that the caller asked for."""
        return self.upstream.named(str(self.body.get("model", self.upstream.name)))


def place(choice: Mapping[str, Any], i: int) -> int:
    """Which choice this is, by its index or else its turn. Raises `ModelError`."""
    index = choice.get("index")
    if index is None:
        return i
    if type(index) is not int or index < 0:
        raise ModelError(f"the server sent a choice with the index {index!r}"[:200])
    return index


class Branch:
    """One choice: the draft is its share of the exchange, anything else a call of its own."""

    def __init__(self, exchange: Exchange, index: int, detectors: Scoring) -> None:
        self.exchange, self.index, self.detectors = exchange, index, detectors
        self.ledger = Ledger()
        self.queue: asyncio.Queue[tuple[bytes, wire.Json] | Exception | None] = asyncio.Queue()

    async def generate(self, model: str, request: AnyRequest) -> Reply:
        start = time.perf_counter()
        reply = await self.answer(model, request)
        return replace(reply, ms=(time.perf_counter() - start) * 1e3)

    async def answer(self, model: str, request: AnyRequest) -> Reply:
        if request is not self.exchange.request:
            return await self.detectors.ask(model, self.exchange.model(), strip(request))
        _, body = await self.exchange.whole()
        found = [c for i, c in enumerate(body["choices"]) if place(c, i) == self.index]
        if not found:
            raise ModelError(f"the server's completion has no choice {self.index}")
        text = wire.text_of(self.exchange.form.whole(found[0]))
        return Reply(text, found[0].get("finish_reason") or "stop", raw=found[0])

    async def score(self, detector: str, sample: Sample) -> Finding:
        return await self.detectors.score(detector, sample)

    def open(self, model: str, request: AnyRequest) -> AsyncPieces:
        if request is self.exchange.request:
            return self.pieces()
        return self.detectors.read(model, self.exchange.model(), strip(request))

    async def pieces(self) -> AsyncGenerator[str | Reply, None]:
        """What this choice says, as the feed brings it."""
        self.exchange.wanted.set()
        finish, start = "", time.perf_counter()
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                raw, choice = item
                finish = choice.get("finish_reason") or finish
                if piece := self.ledger.add(raw, self.exchange.form.piece(choice)):
                    yield piece
        finally:
            self.exchange.left()
        if not finish:
            raise ModelError("the stream ended before its answer did")
        yield Reply(self.ledger.text, finish, ms=(time.perf_counter() - start) * 1e3)


def strip(request: AnyRequest) -> AnyRequest:
    """A further request without what belongs to the caller's own call."""
    if not isinstance(request, Request):
        return request
    options = {name: value for name, value in request.options.items() if name not in OWN}
    return Request(request.messages, options)


# Seconds that a stream may take to end once it said that it is done.
LINGER = 0.02


async def finish(pieces: AsyncIterator[bytes]) -> None:
    """Reads to the end if it is near: only then can the connection serve another call."""
    with move_on_after(LINGER):
        async for _ in pieces:
            pass


class Feed:
    """The upstream's stream, told apart by choice.

    `first` is the first chunk, whose id and date all others share; chunks that belong to no
    choice are the `lead` before it and the `asides` after it, the last of which may report usage.
    """

    def __init__(self, exchange: Exchange, branches: list[Branch]) -> None:
        self.exchange, self.branches = exchange, branches
        self.first: wire.Json = {}
        self.lead = b""
        self.asides: list[tuple[bytes, wire.Json]] = []

    @cached_property
    def blank(self) -> wire.Json:
        """What all chunks share of an answer for which no model was asked."""
        return wire.empty(str(self.exchange.body.get("model", "")), self.exchange.form.chunk)

    def start(self) -> None:
        """The upstream is asked when a choice first reads: a refused request never reaches it."""
        self.exchange.send(self.run)

    async def run(self, more: Extensions) -> None:
        """Reads to the end; whatever goes wrong goes to every choice."""
        await self.exchange.wanted.wait()
        end: Exception | None = None
        try:
            await self.read(more)
        except Exception as exc:
            end = exc
        for branch in self.branches:
            branch.queue.put_nowait(end)

    async def read(self, more: Extensions) -> None:
        upstream, content = self.exchange.upstream, self.exchange.content
        with upstream.reported():
            async with upstream.aclient.stream(
                "POST",
                self.exchange.form.path,
                content=content,
                headers=self.exchange.headers,
                extensions=more,
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise refused(response)
                parser = sse.Parser()
                pieces = response.aiter_bytes()
                async for data in pieces:
                    for event in parser.feed(data):
                        if event.data == b"[DONE]":
                            self.close(event)
                            await finish(pieces)
                            return
                        self.sort(event)

    def close(self, event: sse.Event) -> None:
        """The stream's last line, which is written anew after usage."""

    def sort(self, event: sse.Event) -> None:
        chunk = load(event.data)
        if chunk.get("error"):
            raise ModelError(f"the stream broke off: {chunk['error']}", body=event.data)
        choices = chunk.get("choices") or []
        if not isinstance(choices, list):
            raise ModelError("the server sent choices that are no list", body=event.data)
        if choices:
            self.first = self.first or chunk
        elif self.first or chunk.get("usage"):
            self.asides.append((event.raw, chunk))
        else:
            self.lead += event.raw
        for i, choice in enumerate(choices):
            if not isinstance(choice, dict):
                raise ModelError("the server sent a choice that is no object", body=event.data)
            raw = event.raw
            if len(choices) > 1:
                raw = sse.frame(json.dumps({**chunk, "choices": [choice]}).encode())
            with suppress(IndexError):
                self.branches[place(choice, i)].queue.put_nowait((raw, choice))
