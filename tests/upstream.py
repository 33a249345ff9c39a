"""A faithful upstream for the sidecar: whole or streamed, in any number of choices and cuts."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.settings import Settings
from mmguard.types import Sample
from tests.world import BAD, WORDS

Json = dict[str, Any]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "vendor": {"kept": 1}}
SHARED = {"id": "chatcmpl-up", "created": 1, "model": "up", "system_fingerprint": "fp"}


def completion(*messages: Mapping[str, Any], **more: Any) -> Json:
    choices = [
        {"index": i, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        for i, message in enumerate(messages)
    ]
    return {**SHARED, "object": "chat.completion", "choices": choices, "usage": USAGE, **more}


def chunk(index: int, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    body = {**SHARED, "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n".encode()


def streamed(*choices: Sequence[Mapping[str, Any]], usage: bool = False) -> bytes:
    """The stream of these choices' deltas, one after another in turns."""
    frames = [chunk(i, {"role": "assistant", "content": ""}) for i in range(len(choices))]
    for turn in range(max(map(len, choices))):
        frames += [chunk(i, c[turn]) for i, c in enumerate(choices) if turn < len(c)]
    frames += [chunk(i, {}, "stop") for i in range(len(choices))]
    if usage:
        body = {**SHARED, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
        frames.append(f"data: {json.dumps(body)}\n\n".encode())
    return b"".join(frames) + b"data: [DONE]\n\n"


class Cuts(httpx.AsyncByteStream):
    """Bytes in the given cuts."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = list(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def cut(data: bytes, ends: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(end % (len(data) + 1) for end in ends)})
    return [data[i:j] for i, j in pairwise(places)]


Handler = (
    Callable[[httpx.Request], httpx.Response]
    | Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]
)


def detector() -> ScriptedDetector:
    def script(sample: Sample) -> float:
        return 0.9 if BAD in (sample.reply or sample.request.text) else 0.1

    return ScriptedDetector(script, name="harm", thresholds=WORDS)


def app(handler: Handler, policy: Path, **settings: Any) -> FastAPI:
    """The sidecar before this upstream."""
    known = Settings(upstream="http://up/v1", policy=str(policy), **settings)
    broken = ScriptedDetector(lambda sample: math.nan, name="broken")
    detectors = {"harm": detector(), "broken": broken}
    return make_app(known, detectors, atransport=httpx.MockTransport(handler))


def client(handler: Handler, policy: Path, **settings: Any) -> httpx.AsyncClient:
    """A caller of the sidecar, in this process."""
    transport = httpx.ASGITransport(app(handler, policy, **settings))
    return httpx.AsyncClient(transport=transport, base_url="http://side/v1")


def write_policy(folder: Path, **fields: Any) -> Path:
    """A policy that blocks what the detector finds, unless `repair` names a step."""
    check = {"detector": "harm", "action": "repair" if fields.get("repair") else "block"}
    path = folder / "policy.yaml"
    path.write_text(json.dumps({"output": [check], "repair": [], **fields}))
    return path
