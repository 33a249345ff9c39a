"""What gets out of a product, and what gets lost in it: one answer of each kind is enough."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.fuzz.oracle import bodies, heard
from benchmarks.peers.upstream import FINE, USAGE, rich
from mmguard.bench.host import BANNED, SHARED
from mmguard.bench.server import Process, noise

Json = dict[str, Any]
TOOL = {"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}
URL = f"data:image/png;base64,{base64.b64encode(noise(1)).decode()}"
WORDS = {"type": "text", "text": "What does it show?"}
PICTURE = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
# Where harm is planted, an answer of the same kind without it, and what is asked beside.
PLACES: dict[str, tuple[str, str, Json]] = {
    "content": ("content", "fine", {}),
    "choice 2": ("choice-2", "two", {"n": 2}),
    "tool": ("tool", "fine-tool", {"tools": [TOOL]}),
    "reasoning": ("reasoning", "fine", {}),
}


@dataclass(slots=True)
class Answer:
    """What came, up to where it broke off if it did."""

    status: int = 0
    data: bytes = b""
    broken: bool = False

    @property
    def body(self) -> Json:
        found: Json = json.loads(self.data)
        return found

    @property
    def chunks(self) -> list[Json]:
        return list(bodies(self.data, True))

    def choices(self, index: int) -> Iterator[Json]:
        for chunk in self.chunks:
            yield from (c for c in chunk.get("choices", []) if c.get("index") == index)

    def said(self, index: int = 0) -> str:
        """The content of one choice of a stream."""
        deltas = [choice.get("delta") or {} for choice in self.choices(index)]
        return "".join(delta.get("content") or "" for delta in deltas)


@dataclass(slots=True)
class Probe:
    """One product, asked one thing at a time."""

    place: Process
    seen: dict[str, Answer] = field(default_factory=dict)

    async def ask(self, model: str, stream: bool = False, **more: Any) -> Answer:
        content = more.pop("content", "What does it show?")
        told = {"model": model, "stream": stream, **more}
        told["messages"] = [{"role": "user", "content": content}]
        body = self.place.dress(json.dumps(told, separators=(",", ":")).encode())
        answer = Answer()
        url = f"http://127.0.0.1:{self.place.port}{self.place.path}"
        headers = {"content-type": "application/json"}
        try:
            async with (
                httpx.AsyncClient(timeout=30, trust_env=False) as client,
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                answer.status = response.status_code
                async for piece in response.aiter_bytes():
                    answer.data += piece
        except httpx.HTTPError:
            answer.broken = True
        return answer

    async def leaks(self) -> dict[str, str]:
        """For each place, whole and streamed: `leaks`, `held`, or `not served` even if harmless."""
        found = {}
        for name, (harm, fine, more) in PLACES.items():
            for stream in (False, True):
                calm = await self.ask(fine, stream, **more)
                answer = await self.ask(harm, stream, **more)
                found[f"{name}, stream" if stream else name] = judge(calm, answer, stream)
        return found

    async def losses(self) -> dict[str, bool]:
        """What a faithful proxy keeps, by name, and whether this one does."""
        wide: Json = {"n": 2, "logprobs": True}
        usage: Json = {"stream_options": {"include_usage": True}}
        asked: Json = {"seed": 3, "vendor_x": {"kept": 1}}
        self.seen = {
            "echo": await self.ask("echo", False, **asked),
            "picture": await self.ask("echo", False, content=[WORDS, PICTURE]),
            "rich": await self.ask("rich", logprobs=True),
            "two": await self.ask("two", **wide),
            "tool": await self.ask("fine-tool", tools=[TOOL]),
            "busy": await self.ask("busy"),
            "block": await self.ask("content"),
            "stream": await self.ask("rich", True, **usage),
            "stream of two": await self.ask("two", True, **wide),
            "stream of a tool": await self.ask("fine-tool", True, tools=[TOOL]),
            "stream blocked": await self.ask("content", True),
        }
        return {name: self.holds(check) for name, check in CHECKS.items()}

    def holds(self, check: Callable[[dict[str, Answer]], bool]) -> bool:
        """An answer that cannot be read keeps nothing."""
        try:
            return bool(check(self.seen))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return False


def judge(calm: Answer, answer: Answer, stream: bool) -> str:
    if any(BANNED in text for text in heard(answer.data, stream).values()):
        return "leaks"
    # Some products write calls of tools in a form of their own.
    if BANNED.encode() in answer.data and answer.status == 200 and b"error" not in answer.data:
        return "leaks"
    served = calm.status == 200 and not calm.broken and not failed(calm)
    return "held" if served else "not served"


def failed(answer: Answer) -> bool:
    return b'"error": {' in answer.data or b'"error":{' in answer.data


def usage_of(body: Json) -> Json:
    found = body.get("usage") or {}
    return {name: found.get(name) for name in USAGE}


def echoed(seen: dict[str, Answer], name: str = "echo") -> Json:
    found: Json = json.loads(seen[name].body["choices"][0]["message"]["content"])
    return found


def first(seen: dict[str, Answer], name: str) -> Json:
    found: Json = seen[name].body["choices"][0]
    return found


def arguments(answer: Answer) -> str:
    calls = [c["delta"].get("tool_calls") or [] for c in answer.choices(0) if c.get("delta")]
    return "".join(call[0]["function"].get("arguments") or "" for call in calls if call)


def ending(answer: Answer) -> str:
    choices = answer.body.get("choices") or [{}]
    return str(choices[0].get("finish_reason"))


def finishes(answer: Answer) -> list[str]:
    return [c["finish_reason"] for c in answer.choices(0) if c.get("finish_reason")]


CHECKS: dict[str, Callable[[dict[str, Answer]], bool]] = {
    "request: unknown field": lambda s: echoed(s).get("vendor_x") == {"kept": 1},
    "request: seed": lambda s: echoed(s).get("seed") == 3,
    "request: picture": lambda s: echoed(s, "picture")["pictures"] == [len(URL)],
    "id": lambda s: s["rich"].body["id"] == SHARED["id"],
    "usage": lambda s: usage_of(s["rich"].body) == USAGE,
    "finish_reason": lambda s: first(s, "rich")["finish_reason"] == "length",
    "logprobs": lambda s: first(s, "rich")["logprobs"]["content"][0]["logprob"] == -0.5,
    "answer: unknown field": lambda s: s["rich"].body["vendor"] == {"kept": 1},
    "answer: every byte": lambda s: s["rich"].data == rich(),
    "n=2": lambda s: len(s["two"].body["choices"]) == 2,
    "tool call": lambda s: (
        json.loads(first(s, "tool")["message"]["tool_calls"][0]["function"]["arguments"])
        == {"text": FINE}
        and first(s, "tool")["finish_reason"] == "tool_calls"
    ),
    "upstream's 429": lambda s: s["busy"].status == 429,
    "block is told": lambda s: told_block(s["block"], [ending(s["block"])]),
    "stream: [DONE]": lambda s: s["stream"].data.rstrip().endswith(b"data: [DONE]"),
    "stream: id": lambda s: {c["id"] for c in s["stream"].chunks} == {SHARED["id"]},
    "stream: role": lambda s: next(s["stream"].choices(0))["delta"].get("role") == "assistant",
    "stream: finish_reason": lambda s: finishes(s["stream"]) == ["length"],
    "stream: usage": lambda s: any(usage_of(c) == USAGE for c in s["stream"].chunks),
    "stream: n=2": lambda s: (
        s["stream of two"].said(0) == FINE and bool(s["stream of two"].said(1))
    ),
    "stream: tool call": lambda s: json.loads(arguments(s["stream of a tool"])) == {"text": FINE},
    "stream: block is told": lambda s: told_block(
        s["stream blocked"], finishes(s["stream blocked"])
    ),
}


def told_block(answer: Answer, ends: list[str]) -> bool:
    """Whether a client can tell a refusal from an answer, and gets one at all."""
    return not answer.broken and (
        answer.status == 400 or "content_filter" in ends or failed(answer)
    )
