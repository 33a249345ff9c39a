"""What one guarded response sends by events: the upstream's as they came, then our own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mmguard import sse
from mmguard.server import items, wire
from mmguard.server.exchange import Branch, Feed
from mmguard.server.heard import locate
from mmguard.server.talk import Turn
from mmguard.types import Guarded

# Parts in which people read text, by the field that has it, and what their events say besides.
DONE = {"output_text": "text", "refusal": "refusal"}
MORE: Mapping[str, wire.Json] = {"output_text": {"logprobs": []}, "refusal": {}}


class Teller(Turn):
    """`items` are those that the client has got, `open` what of them has not ended.

    `told` is the response as its client knows it, `next` the number of the next event.
    """

    def __init__(self, branch: Branch, feed: Feed, in_content: bool) -> None:
        super().__init__(branch, feed, in_content)
        self.items: dict[int, wire.Json] = {}
        self.open: set[int] = set()
        self.part: tuple[int, int] | None = None
        self.told: wire.Json = {}
        self.next, self.own = 0, list[bytes]()

    def see(self, event: sse.Event) -> None:
        """Our own events were followed when they were made."""
        if event.raw in self.own:
            self.own.remove(event.raw)
        elif event.data != b"[DONE]":
            self.follow(json.loads(event.data))

    def follow(self, event: Any) -> None:
        number, place = event.get("sequence_number"), event.get("output_index")
        self.next = max(self.next, wire.number(number) + 1)
        if isinstance(event.get("response"), dict):
            self.told = {**event["response"], "output": []}
        if not isinstance(place, int):
            return
        match event:
            case {"type": "response.output_item.added", "item": dict(item)}:
                self.items[place], self.part = item, None
                self.open.add(place)
            case {"type": "response.output_item.done", "item": dict(item)}:
                self.items[place], self.part = item, None
                self.open.discard(place)
            case {"part": dict(part)} if place in self.items:
                self.keep(event, self.items[place], part)
            case {"delta": str(delta)} if place in self.items:
                grow(self.items[place], locate(event), delta)

    def keep(self, event: Mapping[str, Any], item: wire.Json, part: wire.Json) -> None:
        """A part begins, or has ended."""
        name = "summary" if "summary_index" in event else "content"
        index, place = event.get(f"{name}_index"), event["output_index"]
        if item.get(name) is None:
            item[name] = []
        if not isinstance(item[name], list) or not isinstance(index, int):
            return
        item[name][index : index + 1] = [part]
        begun = str(event.get("type")).endswith(".added") and str(part.get("type")) in DONE
        self.part = (place, len(item[name]) - 1) if begun else None

    # -- our own ----------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> bytes:
        told = {**fields, "sequence_number": self.next}
        made = items.event(kind, **told)
        self.follow(json.loads(wire.dump({"type": kind, **told})))
        self.own.append(made)
        return made

    def start(self) -> bytes:
        """The response's beginning, with the upstream's model if it had begun."""
        if self.begun and self.told:
            return b""
        self.begun = True
        first = self.feed.first
        kept = {name: first[name] for name in items.KEPT if name in first}
        response = {**items.empty(self.branch.exchange.body), **kept}
        made = self.event("response.created", response=response)
        return made + self.event("response.in_progress", response=response)

    def write(self, text: str) -> bytes:
        return self.add("output_text", text)

    def add(self, kind: str, text: str) -> bytes:
        """Text of our own, in the open part if that is of its kind, else in a new one."""
        made = self.start() + self.enter(kind)
        item, index = self.part or (0, 0)
        spot = {"item_id": self.items[item].get("id"), "output_index": item, "content_index": index}
        return made + self.event(f"response.{kind}.delta", **spot, delta=text, **MORE[kind])

    def enter(self, kind: str) -> bytes:
        """A part of this kind, in the message that is open or in a new one."""
        item = self.items.get(max(self.open, default=-1))
        if self.part and self.items[self.part[0]]["content"][self.part[1]].get("type") == kind:
            return b""
        made = self.leave()
        if item is None or item.get("type") != "message":
            made += self.shut("incomplete") + self.turn()
        place = max(self.open)
        content = self.items[place].get("content")
        index = len(content) if isinstance(content, list) else 0
        part = items.text_part("") if kind == "output_text" else {"type": kind, "refusal": ""}
        spot = {"item_id": self.items[place].get("id"), "output_index": place}
        return made + self.event(
            "response.content_part.added", **spot, content_index=index, part=part
        )

    def turn(self) -> bytes:
        """A message after all that the client has got."""
        place = max(self.items, default=-1) + 1
        item = items.message([], "in_progress")
        return self.event("response.output_item.added", output_index=place, item=item)

    def leave(self) -> bytes:
        """The end of the part that is open."""
        if self.part is None:
            return b""
        place, index = self.part
        part = self.items[place]["content"][index]
        kind, item = part["type"], self.items[place].get("id")
        said = {DONE[kind]: part.get(DONE[kind], ""), **MORE[kind]}
        spot = {"item_id": item, "output_index": place, "content_index": index}
        made = self.event(f"response.{kind}.done", **spot, **said)
        return made + self.event("response.content_part.done", **spot, part=part)

    def shut(self, status: str) -> bytes:
        """The end of all items that are open."""
        return self.leave() + b"".join(self.close(status))

    def close(self, status: str) -> Iterator[bytes]:
        for place in sorted(self.open):
            item = {**self.items[place], "status": status}
            if item.get("type") != "message":
                item["status"] = "incomplete"
            yield self.event("response.output_item.done", output_index=place, item=item)

    def end(self, guarded: Guarded, held: str) -> bytes:
        if guarded.action != "block":
            return super().end(guarded, held)
        said = self.owed() + (self.add("output_text", held) if self.in_content and held else b"")
        return said + self.add("refusal", held) + self.finish(guarded)

    def finish(self, guarded: Guarded) -> bytes:
        """The end of everything, with all that the client has got."""
        made = self.start()
        usage = self.feed.first.get("usage")
        response = items.close(self.told, guarded, usage)
        made += self.shut(response["status"])
        response["output"] = [self.items[place] for place in sorted(self.items)]
        return made + self.event(f"response.{response['status']}", response=response)


def grow(item: wire.Json, path: tuple[str, ...], delta: str) -> None:
    """A delta at its place in an item, if the item has the place."""
    *steps, last = path
    inner: Any = item
    for step in steps:
        found = inner[int(step)] if isinstance(inner, list) and is_in(step, inner) else None
        inner = inner.get(step) if isinstance(inner, dict) else found
    if isinstance(inner, dict) and isinstance(inner.get(last, ""), str):
        inner[last] = inner.get(last, "") + delta


def is_in(step: str, places: list[Any]) -> bool:
    return step.isdecimal() and int(step) < len(places)
