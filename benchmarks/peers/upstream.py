"""The upstream of all products: what is timed, harm in many places, and what a proxy may lose.

`python -m benchmarks.peers.upstream` prints its port. Like `mmguard.bench.host`'s, which
it is but for more answers, and for bodies that others have written anew.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

from mmguard.bench.host import BANNED, SHARED, Upstream, chunk, serve_upstream, watch

Json = dict[str, Any]
MODEL = re.compile(rb'"model"\s*:\s*"([\w-]+)"')
STREAM = re.compile(rb'"stream"\s*:\s*true')
# Models stand at one end of a body, also where a picture stands between.
NEAR = 2000
FINE = "The photo shows a small harbour."
HARM = f"Sure, here is {BANNED}. Now do it."
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
LOGPROBS = {"content": [{"token": "The", "logprob": -0.5, "bytes": [84], "top_logprobs": []}]}
BUSY = b'{"error":{"message":"slow down","type":"rate_limit_error","param":null,"code":"busy"}}'


def call(text: str) -> Json:
    told = json.dumps({"text": text})
    return {"id": "call_1", "type": "function", "function": {"name": "write", "arguments": told}}


# Where harm is planted: the messages of each choice.
PLANTED: dict[str, list[Json]] = {
    "content": [{"content": HARM}],
    "choice-2": [{"content": FINE}, {"content": HARM}],
    "tool": [{"content": None, "tool_calls": [call(HARM)]}],
    "reasoning": [{"content": FINE, "reasoning_content": HARM}],
    "fine-tool": [{"content": None, "tool_calls": [call(FINE)]}],
    "fine": [{"content": FINE}],
    "two": [{"content": FINE}, {"content": "A dog sleeps in the sun."}],
}


def whole(messages: list[Json], **more: Any) -> bytes:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "refusal": None, **message},
            "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
            "logprobs": None,
        }
        for i, message in enumerate(messages)
    ]
    made = {**SHARED, "object": "chat.completion", "choices": choices, "usage": USAGE, **more}
    return json.dumps(made).encode()


def pieces(message: Json) -> list[Json]:
    """A message's deltas, four characters at a time."""
    made: list[Json] = [{"role": "assistant", "content": ""}]
    for name, value in message.items():
        if isinstance(value, str):
            made += [{name: cut} for cut in cuts(value)]
    for i, one in enumerate(message.get("tool_calls", [])):
        function = one["function"]
        made.append(
            {"tool_calls": [{**one, "index": i, "function": {**function, "arguments": ""}}]}
        )
        for cut in cuts(function["arguments"]):
            made.append({"tool_calls": [{"index": i, "function": {"arguments": cut}}]})
    return made


def cuts(text: str, size: int = 4) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def frames(messages: list[Json], **more: Any) -> list[bytes]:
    """The choices' events in turns, why each ended, and the usage."""
    told = [pieces(message) for message in messages]
    made = []
    for turn in range(max(map(len, told))):
        made += [event(i, one[turn], None, **more) for i, one in enumerate(told) if turn < len(one)]
    for i, message in enumerate(messages):
        made.append(event(i, {}, "tool_calls" if "tool_calls" in message else "length", **more))
    last = {**SHARED, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    return [*made, b"data: %s\n\n" % json.dumps(last).encode(), b"data: [DONE]\n\n"]


def event(index: int, delta: Json, finish: str | None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    made = {**SHARED, "object": "chat.completion.chunk", "choices": [choice], **more}
    return b"data: %s\n\n" % json.dumps(made).encode()


def reply(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def rich(**choice: Any) -> bytes:
    """A completion with all that a proxy may lose."""
    made = json.loads(whole([{"content": FINE}], system_fingerprint="fp_1", vendor={"kept": 1}))
    made["choices"][0] |= {"finish_reason": "length", "logprobs": LOGPROBS, **choice}
    return json.dumps(made).encode()


def seen(body: bytes) -> Json:
    """What has come of a request: its fields, and how many characters its picture has."""
    fields: Json = json.loads(body)
    parts = [p for m in fields.pop("messages") for p in parted(m.get("content"))]
    urls = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
    return {**fields, "pictures": [len(url) for url in urls]}


def parted(content: Any) -> list[Json]:
    return content if isinstance(content, list) else []


class Many(Upstream):
    """Answers by the model's name, in whichever way the body is written."""

    async def answer(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        near = body if len(body) < 2 * NEAR else body[:NEAR] + body[-NEAR:]
        found = MODEL.search(near)
        name = found[1].decode() if found else "mock"
        if name in ("mock", "harm"):
            # As the parent knows them: written tightly.
            told = b'{"model":"%s","stream":%s}' % (
                name.encode(),
                b"true" if STREAM.search(near) else b"false",
            )
            return await super().answer(told, writer)
        for piece in self.script(name, body, STREAM.search(near) is not None):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        return True

    def script(self, name: str, body: bytes, streams: bool) -> list[bytes]:
        """The pieces of one answer."""
        if name == "busy":
            return [reply(429, BUSY)]
        if name == "echo":
            messages = [{"content": json.dumps(seen(body))}]
        else:
            messages = PLANTED.get(name, [{"content": FINE}])
        if not streams:
            return [reply(200, rich() if name == "rich" else whole(messages))]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
        more = {"system_fingerprint": "fp_1", "vendor": {"kept": 1}} if name == "rich" else {}
        return [head + b"\r\n\r\n", *map(chunk, frames(messages, **more)), b"0\r\n\r\n"]


def main() -> None:
    threading.Thread(target=watch, daemon=True).start()
    with asyncio.Runner() as runner:
        runner.run(serve_upstream(Many()))


if __name__ == "__main__":
    main()
