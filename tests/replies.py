"""OpenAI's responses, whole and streamed, an upstream that says them, and a caller."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.upstream import Cuts, Handler, Json, client, cut
from tests.world import png

ASK: Json = {"model": "up", "max_output_tokens": 50, "input": "what is this?"}
BLOCK: Json = {"refusals": {"default": "<no>", "cut": "<cut>"}}
WINDOW: Json = {"stream": {"mode": "window", "window": 6, "hold": 3}}
DETAILS: Json = {
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens_details": {"reasoning_tokens": 1},
}
USAGE = {"input_tokens": 7, **DETAILS, "output_tokens": 5, "total_tokens": 12}
URI = "data:image/png;base64," + base64.b64encode(png()).decode()
# What a server repeats of the request, with its defaults.
ECHO: Json = {
    "background": False,
    "billing": {"payer": "developer"},
    "instructions": None,
    "max_output_tokens": 50,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": "in_memory",
    "reasoning": {"effort": "medium", "summary": "detailed"},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
}
HEAD: Json = {"id": "resp_up", "object": "response", "created_at": 1, "model": "up-1", **ECHO}


def picture(address: str = URI, **more: Any) -> Json:
    return {"type": "input_image", "detail": "low", "image_url": address, **more}


def text(said: str, **more: Any) -> Json:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": [], **more}


def message(*content: Json, name: str = "msg_up") -> Json:
    told = {"id": name, "type": "message", "role": "assistant", "status": "completed"}
    return {**told, "content": list(content)}


def words(said: str) -> Json:
    return message(text(said))


def call(arguments: str, name: str = "look_up") -> Json:
    told = {"id": "fc_up", "type": "function_call", "status": "completed", "call_id": "call_1"}
    return {**told, "arguments": arguments, "name": name}


def thought(summary: str, content: str = "") -> Json:
    told: Json = {"id": "rs_up", "type": "reasoning", "encrypted_content": "x"}
    told["summary"] = [{"type": "summary_text", "text": summary}] if summary else []
    if content:
        told["content"] = [{"type": "reasoning_text", "text": content}]
    return told


def response(*output: Json, **more: Any) -> Json:
    told: Json = {"status": "completed", "error": None, "incomplete_details": None}
    return {**HEAD, **told, "output": list(output), "usage": USAGE, **more}


# -- events -------------------------------------------------------------------


class Script:
    """A stream's events, numbered as they are added."""

    def __init__(self) -> None:
        self.events: list[Json] = []

    def add(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, **fields, "sequence_number": len(self.events)})

    @property
    def data(self) -> bytes:
        return b"".join(map(frame, self.events))


def frame(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


# By the type of a part: the kind of its events, and the field that has its text.
PARTS = {
    "output_text": ("output_text", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("reasoning_text", "text"),
    "summary_text": ("reasoning_summary_text", "text"),
}
# The same for items whose text stands in the item.
FIELDS = {
    "function_call": ("function_call_arguments", "arguments"),
    "mcp_call": ("mcp_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
    "code_interpreter_call": ("code_interpreter_call_code", "code"),
}


def pieces(said: str, size: int) -> Iterator[str]:
    return (said[i : i + size] for i in range(0, len(said), size))


def stream(*output: Json, size: int = 4, end: Json | None = None) -> bytes:
    """A response's events, its texts in deltas of this size."""
    script, whole = Script(), response(*output, **(end or {}))
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    for kind in ("created", "in_progress"):
        script.add(f"response.{kind}", response=begun)
    for i, item in enumerate(output):
        tell(script, i, item, size)
    script.add(f"response.{whole['status']}", response=whole)
    return script.data


def tell(script: Script, place: int, item: Json, size: int) -> None:
    spot = {"item_id": item["id"], "output_index": place}
    kind, name = FIELDS.get(item["type"], ("", ""))
    blank = {"content": [], "summary": [], name: ""}
    begun = {k: blank.get(k, v) for k, v in item.items()}
    script.add("response.output_item.added", output_index=place, item=begun)
    if kind:
        for piece in pieces(item[name], size):
            script.add(f"response.{kind}.delta", **spot, delta=piece)
        script.add(f"response.{kind}.done", **spot, **{name: item[name]})
    for field, index in (("summary", "summary_index"), ("content", "content_index")):
        for i, part in enumerate(item.get(field) or ()):
            detail(script, {**spot, index: i}, part, size)
    script.add("response.output_item.done", output_index=place, item=item)


def detail(script: Script, spot: Json, part: Json, size: int) -> None:
    """One part: it begins, grows, says all of itself, and ends."""
    kind, name = PARTS[part["type"]]
    more: Json = {"logprobs": []} if kind == "output_text" else {}
    stem = "reasoning_summary_part" if "summary_index" in spot else "content_part"
    script.add(f"response.{stem}.added", **spot, part={**part, name: ""})
    for piece in pieces(part[name], size):
        script.add(f"response.{kind}.delta", **spot, delta=piece, **more)
    script.add(f"response.{kind}.done", **spot, **{name: part[name]}, **more)
    script.add(f"response.{stem}.done", **spot, part=part)


# -- an upstream and a caller ---------------------------------------------------


def says(body: Json | bytes, status: int = 200, *ends: int) -> Handler:
    """An upstream that says this, and mends what it is asked to write anew."""

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/responses"
        asked = json.loads(request.content)
        if "anew" in json.dumps(asked):
            assert asked["max_output_tokens"] == 50
            assert asked["store"] is False
            return httpx.Response(200, json=response(thought("hm"), words("mended")))
        if isinstance(body, bytes):
            return httpx.Response(status, stream=Cuts(cut(body, ends)))
        return httpx.Response(status, content=json.dumps(body, indent=1))

    return handler


def post(handler: Handler, policy: Path, known: Json | None = None, **body: Any) -> httpx.Response:
    """What the sidecar, under these settings, answers to this."""

    async def run() -> httpx.Response:
        async with client(handler, policy, **(known or {})) as caller:
            return await caller.post("responses", json={**ASK, **body})

    return asyncio.run(run())


def listen(handler: Handler, policy: Path, **body: Any) -> tuple[bytes, list[Json]]:
    """The bytes of a stream, and its events, each under its own name."""
    data = post(handler, policy, stream=True, **body).content
    return data, parse(data)


def parse(data: bytes) -> list[Json]:
    found = []
    for framed in data.decode().split("\n\n")[:-1]:
        name, told = framed.split("\n")
        found.append(json.loads(told.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def spoken(events: Sequence[Json]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def refused(events: Sequence[Json]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.refusal.delta")


def end(events: Sequence[Json]) -> tuple[str, str | None]:
    """How the response ended, and why it is incomplete."""
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    return last["status"], (last["incomplete_details"] or {}).get("reason")


def well_formed(events: Sequence[Json]) -> None:
    """Numbers rise, one start, one end; items and parts open and shut, and say what they said."""
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"] for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert sum("response" in e for e in events) == 3
    assert len({e["response"]["id"] for e in events if "response" in e}) == 1
    open_items: dict[int, Json] = {}
    done: dict[int, Json] = {}
    heard: dict[tuple[Any, ...], str] = {}
    for told in events[2:-1]:
        place = told["output_index"]
        if told["type"] == "response.output_item.added":
            assert place == len(open_items) + len(done)
            open_items[place] = told["item"]
            continue
        item = open_items[place]
        assert told.get("item_id", item["id"]) == item["id"]
        spot = (place, told.get("summary_index"), told.get("content_index"))
        if isinstance(told.get("delta"), str):
            heard[spot] = heard.get(spot, "") + told["delta"]
        elif told["type"].endswith((".done",)) and "part" not in told and "item" not in told:
            said = [told[name] for name in ("text", "refusal", "arguments") if name in told]
            assert said in ([], [heard.get(spot, "")])
        elif told["type"] == "response.output_item.done":
            assert told["item"]["id"] == item["id"]
            done[place] = told["item"]
            del open_items[place]
    assert not open_items
    assert events[-1]["response"]["output"] == [done[place] for place in sorted(done)]
