"""One request on its way to the server behind: asked once, whatever the number of choices.

An `Exchange` is what all choices share; a `Branch` is the world of one choice's flow.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

from mmguard import sse
from mmguard.drive import AsyncPieces
from mmguard.errors import ModelError
from mmguard.models.openai import OpenAIModel, load, refused
from mmguard.runtime import AsyncModel, Concurrent
from mmguard.server import wire
from mmguard.server.form import CHAT, Form
from mmguard.server.ledger import Ledger
from mmguard.types import AnyRequest, Finding, Reply, Request, Sample

# What belongs to the caller's call, and to no further one.
OWN = frozenset({"n", "stream", "stream_options", "model"})


class Exchange:
    """The caller's body with its pictures inlined, the request that it says, and the upstream."""

    def __init__(
        self, upstream: OpenAIModel, body: wire.Json, request: Request, form: Form = CHAT
    ) -> None:
        self.upstream, self.body, self.request, self.form = upstream, body, request, form
        self.choices = wire.count(body)
        self.answer: asyncio.Task[tuple[bytes, wire.Json]] | None = None
        self.wanted = asyncio.Event()
        self.reading: asyncio.Task[None] | None = None
        self.readers = self.choices

    async def whole(self) -> tuple[bytes, wire.Json]:
        """The upstream's completion as it came, and read. Raises `ModelError` as it refused."""
        if self.answer is None:
            self.answer = asyncio.ensure_future(self.post())
        return await asyncio.shield(self.answer)

    async def post(self) -> tuple[bytes, wire.Json]:
        with self.upstream.reported():
            response = await self.upstream.aclient.post(
                self.form.path, content=wire.dump(self.body), headers=self.headers
            )
        if response.status_code != 200:
            raise refused(response.status_code, response.content)
        body = load(response.content)
        choices = body.get("choices")
        if not isinstance(choices, list) or not all(map(self.is_choice, choices)):
            raise ModelError("the server's completion has no choices", body=response.content)
        return response.content, body

    def is_choice(self, choice: Any) -> bool:
        return isinstance(choice, dict) and isinstance(self.form.whole(choice), Mapping)

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": "application/json", **self.upstream.headers}

    def leave(self) -> None:
        """Nobody waits any more."""
        for task in (self.answer, self.reading):
            if task is not None:
                task.cancel()

    def left(self) -> None:
        """One choice needs no more of the stream; after the last one the upstream may stop."""
        self.readers -= 1
        if not self.readers:
            self.leave()

    def model(self) -> AsyncModel:
        """The upstream under the name that the caller asked for."""
        return self.upstream.named(str(self.body.get("model", self.upstream.name)))


class Branch:
    """One choice: the draft is its share of the exchange, anything else a call of its own."""

    def __init__(self, exchange: Exchange, index: int, detectors: Concurrent) -> None:
        self.exchange, self.index, self.detectors = exchange, index, detectors
        self.ledger = Ledger()
        self.queue: asyncio.Queue[tuple[bytes, wire.Json] | Exception | None] = asyncio.Queue()

    async def generate(self, model: str, request: AnyRequest) -> Reply:
        if request is not self.exchange.request:
            return await self.exchange.model().agenerate(strip(request))
        _, body = await self.exchange.whole()
        found = [c for i, c in enumerate(body["choices"]) if c.get("index", i) == self.index]
        if not found:
            raise ModelError(f"the server's completion has no choice {self.index}")
        text = wire.text_of(self.exchange.form.whole(found[0]))
        return Reply(text, found[0].get("finish_reason") or "stop", raw=found[0])

    async def score(self, detector: str, sample: Sample) -> Finding:
        return await self.detectors.score(detector, sample)

    def open(self, model: str, request: AnyRequest) -> AsyncPieces:
        if request is self.exchange.request:
            return self.pieces()
        return self.exchange.model().astream(strip(request))

    async def pieces(self) -> AsyncGenerator[str | Reply, None]:
        """What this choice says, as the feed brings it."""
        self.exchange.wanted.set()
        finish = ""
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                raw, choice = item
                finish = choice.get("finish_reason") or finish
                delta = self.exchange.form.piece(choice)
                if piece := self.ledger.add(raw, delta if isinstance(delta, Mapping) else {}):
                    yield piece
        finally:
            self.exchange.left()
        if not finish:
            raise ModelError("the stream ended before its answer did")
        yield Reply(self.ledger.text, finish)


def strip(request: AnyRequest) -> AnyRequest:
    """A further request without what belongs to the caller's own call."""
    if not isinstance(request, Request):
        return request
    options = {name: value for name, value in request.options.items() if name not in OWN}
    return Request(request.messages, options)


class Feed:
    """The upstream's stream, told apart by choice.

    `first` is the first chunk, whose id and date all others share; `asides` are chunks that
    belong to no choice, the last of which may report usage.
    """

    def __init__(self, exchange: Exchange, branches: list[Branch]) -> None:
        self.exchange, self.branches = exchange, branches
        self.first: wire.Json = {}
        self.asides: list[tuple[bytes, wire.Json]] = []

    def start(self) -> None:
        """The upstream is asked when a choice first reads: a refused request never reaches it."""
        self.exchange.reading = asyncio.ensure_future(self.run())

    async def run(self) -> None:
        """Reads to the end; whatever goes wrong goes to every choice."""
        await self.exchange.wanted.wait()
        end: Exception | None = None
        try:
            await self.read()
        except Exception as exc:
            end = exc
        for branch in self.branches:
            branch.queue.put_nowait(end)

    async def read(self) -> None:
        upstream, content = self.exchange.upstream, wire.dump(self.exchange.body)
        with upstream.reported():
            async with upstream.aclient.stream(
                "POST", self.exchange.form.path, content=content, headers=self.exchange.headers
            ) as response:
                if response.status_code != 200:
                    raise refused(response.status_code, await response.aread())
                parser = sse.Parser()
                async for data in response.aiter_bytes():
                    for event in parser.feed(data):
                        if event.data == b"[DONE]":
                            return
                        self.sort(event)

    def sort(self, event: sse.Event) -> None:
        chunk = load(event.data)
        if "error" in chunk:
            raise ModelError(f"the stream broke off: {chunk['error']}", body=event.data)
        self.first = self.first or chunk
        choices = chunk.get("choices") or []
        if not choices:
            self.asides.append((event.raw, chunk))
        for choice in choices:
            if not isinstance(choice, dict):
                raise ModelError("the server sent a choice that is no object", body=event.data)
            raw = event.raw
            if len(choices) > 1:
                raw = sse.frame(json.dumps({**chunk, "choices": [choice]}).encode())
            index = choice.get("index", 0)
            with suppress(IndexError):
                self.branches[index].queue.put_nowait((raw, choice))
