"""What an upstream may do wrong, each row with what the caller of the sidecar then gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.faulty import Peer, Script
from tests.upstream import chunk, completion, streamed
from tests.world import BAD

Json = dict[str, Any]
FINE = [{"content": "all "}, {"content": "is "}, {"content": "fine"}]
HARM = [{"content": "some "}, {"content": f"{BAD} words"}]


# -- the upstream's faults ------------------------------------------------------


async def resets(peer: Peer) -> None:
    peer.reset()


async def closes(peer: Peer) -> None:
    peer.writer.close()


async def resets_midway(peer: Peer) -> None:
    await peer.head()
    await peer.piece(streamed(HARM)[:-200])
    await asyncio.sleep(0.05)
    peer.reset()


async def ends_in_a_chunk(peer: Peer) -> None:
    await peer.head()
    await peer.send(b"fff\r\n" + streamed(HARM)[:300])
    peer.writer.close()


async def stalls(peer: Peer) -> None:
    await peer.head()
    await peer.piece(streamed(HARM)[:300])
    await peer.wait()


def says(body: bytes | Json, status: int = 200) -> Script:
    """The same body, whatever is asked."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda peer: peer.answer(data, status)


def speaks(*frames: bytes, whole: Any = None) -> Script:
    """These bytes to whoever wants a stream, a whole completion to others."""

    async def script(peer: Peer) -> None:
        if not peer.body.get("stream"):
            return await peer.answer(json.dumps(whole or completion({"content": "x"})).encode())
        await peer.head()
        for frame in frames:
            await peer.piece(frame)
        await peer.end()
        return None

    return script


def choices(*made: Any) -> Json:
    return {**completion(), "choices": list(made)}


def choice(said: str, **more: Any) -> Json:
    message = {"role": "assistant", "content": said}
    return {"index": 0, "message": message, "finish_reason": "stop", **more}


def event(*made: Any, **more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "choices": list(made), **more}).encode() + b"\n\n"


def delta(index: Any, text: str, finish: str | None = None) -> Json:
    return {"index": index, "delta": {"content": text}, "finish_reason": finish}


DONE = b"data: [DONE]\n\n"
DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000
AZURE = event(prompt_filter_results=[{"prompt_index": 0}]) + streamed(FINE)
CRLF = b": hello\r\n\r\n" + streamed(FINE).replace(b"\n", b"\r\n")
LONE = json.dumps(completion({"content": f"\ud83d {BAD}"})).encode()
LONE_FRAMES = [chunk(0, {"content": text}) for text in ("\ud83d", "\ude00 ", BAD)]


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, and the statuses of whole and streamed answers under it; `None`: not asked."""

    script: Script
    whole: int | None = 502
    stream: int | None = 502
    told: str = ""


ROWS: Mapping[str, Row] = {
    "resets": Row(resets),
    "closes": Row(closes),
    "resets midway": Row(resets_midway),
    "ends in a chunk": Row(ends_in_a_chunk),
    "stalls": Row(stalls, 502, 200, "upstream_error"),
    "500": Row(says({"error": {"message": "boom", "code": 7}}, 500), 500, 500, "boom"),
    "500 in html": Row(says(b"<h1>500</h1>", 500), 500, 500, "upstream_error"),
    "503 of nothing": Row(says(b" ", 503), 503, 503, "upstream_error"),
    "429 of no number": Row(says(b'{"error": NaN}', 429), 429, 429),
    "400 in depth": Row(says(DEEP, 400), 400, 400, "upstream_error"),
    "no json": Row(says(b"{nonsense")),
    "no utf-8": Row(says(b'{"choices": "\xff\xfe"}')),
    "too deep": Row(says(DEEP)),
    "deep in a choice": Row(says(json.dumps(choices(choice("x"))).encode()[:-1] + b","), 502, 502),
    "no choices": Row(speaks(event(choices=5), whole={"choices": 5})),
    "a choice of null": Row(speaks(event(None), whole=choices(None))),
    "a choice too many": Row(
        speaks(
            event(delta(0, "fine"), delta(1, BAD)) + event(delta(0, "", "stop")) + DONE,
            whole=choices(choice("fine"), choice(BAD, index=1)),
        ),
        502,
        200,
    ),
    "a choice twice": Row(speaks(whole=choices(choice("fine"), choice(BAD))), 502, None),
    "a negative index": Row(
        speaks(
            event(delta(-1, BAD)) + event(delta(0, "", "stop")) + DONE,
            whole=choices(choice("fine"), choice(BAD, index=-1)),
        ),
        502,
        502,
    ),
    "an index of text": Row(
        speaks(event(delta("0", BAD)) + DONE, whole=choices(choice(BAD, index="0")))
    ),
    "an index of lists": Row(
        speaks(event(delta([0], BAD)) + DONE, whole=choices(choice(BAD, index=[0])))
    ),
    "no index": Row(
        speaks(
            event({"delta": {"content": "fine"}}) + event({"finish_reason": "stop"}) + DONE,
            whole=choices({"message": {"content": "fine"}}),
        ),
        200,
        200,
        "fine",
    ),
    "an index of null": Row(
        speaks(
            event(delta(None, "fine", "stop")) + DONE, whole=choices(choice("fine", index=None))
        ),
        200,
        200,
        "fine",
    ),
    "no end": Row(speaks(event(delta(0, "fine")) + DONE), None, 502),
    "an error of null": Row(speaks(event(delta(0, "fine", "stop"), error=None) + DONE), None, 200),
    "two ends": Row(speaks(streamed(FINE) + DONE), None, 200),
    "azure": Row(speaks(AZURE), None, 200),
    "crlf": Row(speaks(CRLF[:-1], CRLF[-1:]), None, 200, "fine"),
    "a huge chunk": Row(
        speaks(streamed([{"content": "x" * 3_000_000}]), whole=choices(choice("x" * 3_000_000))),
        200,
        200,
    ),
    "usage of text": Row(
        speaks(
            streamed(HARM)[: -len(DONE)] + event(usage={"prompt_tokens": "7"}) + DONE,
            whole={**completion({"content": BAD}), "usage": {"prompt_tokens": "7"}},
        ),
        200,
        200,
        "content_filter",
    ),
    "usage of lists": Row(
        speaks(whole={**completion({"content": BAD}), "usage": [7]}), 200, None, "content_filter"
    ),
    "half a character": Row(says(LONE), 200, None, "content_filter"),
    "halves of characters": Row(
        speaks(*LONE_FRAMES, chunk(0, {}, "stop"), DONE), None, 200, "content_filter"
    ),
    "a message in a chunk": Row(
        speaks(event({"index": 0, "message": {"content": BAD}, "finish_reason": "stop"}) + DONE),
        None,
        200,
        "content_filter",
    ),
    "text beside a message": Row(says(choices(choice(BAD, text=BAD))), 200, None, "content_filter"),
    "text beside an equal name": Row(
        speaks(
            event({**delta(0, BAD), "content": "fine"}) + event(delta(0, "", "stop")) + DONE,
            whole=choices({**choice(BAD), "content": "fine"}),
        ),
        200,
        200,
        "content_filter",
    ),
    "text in pieces beside a delta": Row(
        speaks(
            *(
                event({"index": 0, "delta": {"content": "x"}, "content": text})
                for text in (BAD[:-1], BAD[-1])
            ),
            event(delta(0, "", "stop")) + DONE,
        ),
        None,
        200,
        "content_filter",
    ),
    "text in pieces beside no delta": Row(
        speaks(
            event({"index": 0, "delta": None, "content": BAD[:-1]}),
            event(delta(0, "x")),
            event({"index": 0, "delta": None, "content": BAD[-1]}),
            event(delta(0, "", "stop")) + DONE,
        ),
        None,
        200,
        "content_filter",
    ),
}
