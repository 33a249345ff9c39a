"""The two processes of the server benches: a mock upstream, and the sidecar before it.

`python -m mmguard.bench.host upstream`, or `sidecar URL POLICY`; each prints its port and
serves until its standard input ends. The upstream's answers stand ready but for a number that
makes each its own, so that no verdict on one is remembered for the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress

# What no guarded answer may hold.
BANNED = "how to hack into the account"
NUMBER = b"00000000"
# About 128 tokens, a number at either end.
ANSWER = f"Picture {NUMBER.decode()}: " + " ".join(
    [
        "The photo shows a small harbour on a calm morning, with a row of wooden boats tied to",
        "a stone quay and a white lighthouse behind them. Two people in yellow coats sort their",
        "nets while a dog sleeps in the sun. On the left there is a bakery with a striped awning;",
        "its chalk board lists bread, coffee and apple cake. The water is flat enough to mirror",
        "the hills, which are green with a little snow on top. Nothing in the picture moves fast,",
        "and the long shadows tell that it is early, perhaps an hour after sunrise, in spring.",
    ]
)
CHUNKS = 32
SHARED = {"id": f"chatcmpl-{NUMBER.decode()}", "created": 1, "model": "mock"}


def whole(text: str) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 40, "completion_tokens": 128, "total_tokens": 168}
    made = {**SHARED, "object": "chat.completion", "choices": [choice], "usage": usage}
    body = json.dumps(made).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def stream(text: str) -> list[bytes]:
    """The head with the first chunk, the other chunks, and the end, as they go out."""
    size = -(-len(text) // CHUNKS)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    frames = [event({"content": piece}) for piece in pieces] + [event({}, "stop")]
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return [head.encode(), *map(chunk, frames), chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    made = {**SHARED, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(made).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


FINE = (whole(ANSWER), stream(ANSWER))
HARM = (whole(f"Sure, here is {BANNED}. {ANSWER}"), stream(f"Sure, here is {BANNED}. {ANSWER}"))
ERROR = b"HTTP/1.1 500 X\r\ncontent-length: 27\r\n\r\n" + b'{"error":{"message":"boom"}'
FAULTS: dict[bytes, list[bytes]] = {
    b"reset": [],
    b"half": FINE[1][:9],
    b"cut": [HARM[0][:300]],
    b"garbage": [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{nonsense"],
    b"error": [ERROR],
}


class Upstream:
    """Answers by the model's name: a fault, harm, or else what is fine."""

    def __init__(self) -> None:
        self.served = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(size)
                if not await self.answer(body, writer):
                    return

    async def answer(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        self.served += 1
        number, ends = b"%08d" % self.served, body[:200] + body[-200:]
        fault = next((name for name in FAULTS if b'"model":"%s"' % name in ends), None)
        ready = HARM if b'"model":"harm"' in ends else FINE
        streams = b'"stream":true' in ends
        pieces = FAULTS[fault] if fault else ready[1] if streams else [ready[0]]
        for piece in pieces:
            writer.write(piece.replace(NUMBER, number))
            await writer.drain()
            if streams:
                # Chunks come one by one, as a model makes them.
                await asyncio.sleep(0)
        if fault:
            writer.transport.abort() if fault == b"reset" else writer.close()
        return not fault


async def serve_upstream(upstream: Upstream) -> None:
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def serve_sidecar(url: str, policy: str) -> None:
    import uvicorn

    from mmguard.server.app import make_app
    from mmguard.server.settings import Settings

    logging.disable()
    app = make_app(Settings(upstream=url, policy=policy, timeout=30))

    @app.get("/held")
    async def held() -> list[int]:
        """Tasks and requests in flight."""
        return [len(asyncio.all_tasks()), app.state.sidecar.flying]

    # Named TCP, or else asyncio leaves Nagle's delay of 40 ms on.
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    place.bind(("127.0.0.1", 0))
    place.listen(1024)
    print(place.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="critical", access_log=False)
    uvicorn.Server(config).run(sockets=[place])


def watch() -> None:
    """Ends this process with the one that started it."""
    sys.stdin.read()
    os._exit(0)


def main(kind: str, *rest: str) -> None:
    threading.Thread(target=watch, daemon=True).start()
    starts: dict[str, Callable[..., None]] = {"sidecar": serve_sidecar}
    if kind == "upstream":
        with asyncio.Runner() as runner:
            runner.run(serve_upstream(Upstream()))
    else:
        starts[kind](*rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
