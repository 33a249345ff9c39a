"""What is fuzzed: each target takes bytes and raises where a promise is broken.

`sse`: events are the standard's, however they were cut. `wire`: a body is read or refused, and
what is said in it is found. `leak`: no caller hears banned words, whatever the upstream sends.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from benchmarks.fuzz.oracle import heard, walk
from mmguard import messages
from mmguard.errors import InputError, ModelError
from mmguard.models.openai import load
from mmguard.server import wire
from mmguard.server.sidecar import refuse_path
from mmguard.sse import Parser
from tests.test_sse import reference
from tests.upstream import Cuts, client, cut, write_policy
from tests.world import BAD

Target = Callable[[bytes], None]


class Broken(AssertionError):
    """A promise that did not hold."""


def check(holds: bool, told: str) -> None:
    if not holds:
        raise Broken(told)


# -- events ---------------------------------------------------------------------


def sse(data: bytes) -> None:
    """A byte tells the number of cuts, as many say where, the rest is the stream."""
    places, stream = split(data)
    parser = Parser()
    events = [event for piece in cut(stream, places) for event in parser.feed(piece)]
    check([event.data for event in events] == reference(stream), "other events than the standard's")
    again = b"".join(event.raw for event in events)
    check(reference(b"\n" + again) == [event.data for event in events], "raw bytes say less")


def split(data: bytes) -> tuple[list[int], bytes]:
    """Where to cut, by pairs of bytes, and what."""
    count = data[0] % 8 * 2 if data else 0
    told, rest = data[1 : count + 1], data[count + 1 :]
    places = [told[i] * 256 + told[i + 1] for i in range(0, len(told) - 1, 2)]
    return [place % (len(rest) + 1) for place in places], rest


# -- bodies ---------------------------------------------------------------------


def wire_bodies(data: bytes) -> None:
    """The same bytes as a request and as an answer."""
    try:
        body = wire.load(data)
        wire.count(body)
        check(json.loads(wire.dump(body)) == json.loads(data) or nan(data), "written otherwise")
        messages.parse(body.get("messages"), body, fetch=refuse_path)
    except InputError:
        pass
    try:
        hear(load(data))
    except ModelError:
        return


def nan(data: bytes) -> bool:
    return b"NaN" in data


def hear(body: wire.Json) -> None:
    """Every word that a caller would hear is said."""
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
            said = wire.text_of(choice["message"])
            for path, text in walk((), choice["message"]):
                check(text in said, f"not said: {path}")


# -- leaks ----------------------------------------------------------------------

ROUTES = ("chat/completions", "completions", "messages")
POLICIES: Sequence[wire.Json] = (
    {},
    {"stream": {"mode": "window", "window": 6, "hold": 3}},
    {"stream": {"mode": "window", "window": 3, "hold": 3}, "on_error": "block"},
    {"repair": ["rewrite"], "stream": {"mode": "window", "window": 20, "hold": 5}},
)


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and what the upstream answers it with."""

    route: str
    policy: int
    stream: bool
    choices: int
    pieces: Sequence[bytes]

    @property
    def body(self) -> wire.Json:
        asked: wire.Json = {"model": "up", "stream": self.stream, "n": self.choices}
        if self.route == "messages":
            return asked | {"n": 1, "max_tokens": 9, "messages": [ASKED]}
        return asked | ({"messages": [ASKED]} if self.route == ROUTES[0] else {"prompt": "hello"})


ASKED = {"role": "user", "content": "hello"}


def read_case(data: bytes) -> Case:
    """Bytes for route, policy and form, then cuts and the stream; or else for frames of our own."""
    first, second = (*data[:2], 0, 0)[:2]
    places, rest = split(data[2:])
    streams = bool(second & 1)
    raw = build(rest, streams) if second & 4 else rest
    route = ROUTES[0 if second & 4 else first % 3]
    return Case(route, first // 3 % len(POLICIES), streams, 1 + (second >> 1 & 1), cut(raw, places))


FIELDS: Sequence[Callable[[str], wire.Json]] = (
    lambda text: {"delta": {"content": text}},
    lambda text: {"delta": {"refusal": text}},
    lambda text: {"delta": {"reasoning_content": text}},
    lambda text: {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}},
    lambda text: {"delta": {"tool_calls": [{"index": 1, "function": {"name": text}}]}},
    lambda text: {"delta": {"function_call": {"arguments": text}}},
    lambda text: {"delta": {"content": [{"type": "text", "text": text}]}},
    lambda text: {"delta": {"audio": {"transcript": text}}},
    lambda text: {"delta": {"role": text, "vendor": [[text]]}},
    lambda text: {"text": text},
    lambda text: {"message": {"content": text}},
    lambda text: {"delta": {"content": "x"}, "vendor": text},
    lambda text: {"delta": {"content": None, "arguments": {"id": text}}},
    lambda text: {"delta": {}, "finish_reason": "stop", "vendor": text},
    lambda text: {"delta": None, "content": text},
    lambda text: {"delta": {"content": text}, "content": "fine"},
    lambda text: {"delta": {"content": "fine"}, "content": text, "delta ": {"content": text}},
)
TEXTS = ("B", "A", "D", "BA", "AD", "BAD", " ", "fine. ", "", "\n", "BB", "\ud842", "x" * 50, "DAB")

# Bytes that make frames; more would only take longer.
MOST = 80


def build(data: bytes, streams: bool) -> bytes:
    """Each pair of bytes is a piece of one choice in one field; some share a frame."""
    frames: list[list[wire.Json]] = []
    for i in range(0, min(len(data) - 1, MOST), 2):
        how, what = data[i], data[i + 1]
        choice = {"index": what >> 6 & 1, **FIELDS[how % len(FIELDS)](TEXTS[what % len(TEXTS)])}
        if what >= 128 and frames:
            frames[-1].append(choice)
        else:
            frames.append([choice])
    if not streams:
        return json.dumps({"choices": [join(one) for frame in frames for one in frame]}).encode()
    ends = [[{"index": i, "delta": {}, "finish_reason": "stop"}] for i in range(2)]
    told = (json.dumps({"id": "c", "choices": choices}) for choices in frames + ends)
    return b"".join(f"data: {frame}\n\n".encode() for frame in told) + b"data: [DONE]\n\n"


def join(choice: wire.Json) -> wire.Json:
    """A piece as a whole message."""
    return {"message": choice.get("delta") or {}, "finish_reason": "stop", **choice}


def leak(data: bytes) -> None:
    case = read_case(data)
    status, answer = runner().run(world(case.policy).ask(case))
    check(status in (200, 400, 502), f"status {status}")
    if status == 200:
        for path, text in heard(answer, case.stream).items():
            check(BAD not in text, f"banned words in {path}")


class World:
    """A sidecar under one policy, whose upstream answers as the case says."""

    def __init__(self, policy: Path) -> None:
        self.pieces: Sequence[bytes] = ()
        self.caller = client(self.answer, policy)

    def answer(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Cuts(self.pieces))

    async def ask(self, case: Case) -> tuple[int, bytes]:
        self.pieces = case.pieces
        answer = await self.caller.post(case.route, json=case.body)
        return answer.status_code, answer.content


@cache
def runner() -> asyncio.Runner:
    return asyncio.Runner()


@cache
def world(number: int) -> World:
    return World(write_policy(Path(tempfile.mkdtemp()), **POLICIES[number]))


TARGETS: dict[str, Target] = {"sse": sse, "wire": wire_bodies, "leak": leak}
