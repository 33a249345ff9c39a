"""An upstream that misbehaves on real sockets: what it sends is up to a script."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

Json = dict[str, Any]


class Peer:
    """One request at the upstream, and the connection that its answer goes out on."""

    def __init__(
        self, body: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.body, self.reader, self.writer = body, reader, writer
        self.left = threading.Event()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, kind: str = "text/event-stream") -> None:
        """A head whose body comes in chunks, so that its end can be told from a cut."""
        line = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        await self.send(line.encode())

    async def piece(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def answer(self, data: bytes, status: int = 200) -> None:
        await self.head(status, "application/json")
        await self.piece(data)
        await self.end()

    async def wait(self) -> None:
        """Until the other side hangs up."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.left.set()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """All requests so far, in order."""

    def __init__(self, script: Script) -> None:
        self.script, self.peers = script, list[Peer]()
        self.url, self.open = "", 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self.answer(reader, writer)
        finally:
            self.open -= 1

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            while not writer.transport.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                self.peers.append(peer := Peer(body, reader, writer))
                await self.script(peer)


@contextmanager
def faulty(script: Script) -> Iterator[Upstream]:
    """The upstream on loopback, in a thread of its own."""
    upstream, ready = Upstream(script), threading.Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**20)
        upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await over.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def target() -> None:
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(5)
