"""What OpenAI's responses say, whole or by events: every string once, at its place. Pure.

A stream says its text up to four times: in deltas, and in the events that end a part, an item
and the response. What was read at its place is not read again; what differs there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmguard.server import wire

Json = wire.Json
Path = tuple[str, ...]
Told = tuple[Path, str, bool]

# Fields of an item that say nothing to its reader, or say it once more.
MUTE = wire.MUTE | {"status", "phase", "item_id", "file_id", "container_id", "caller_id"}
MUTE |= {"approval_request_id", "encrypted_content", "fingerprint"}
COPIES = frozenset({"logprobs", "obfuscation", "usage", "svg_usage", "content_filter_results"})
# Fields of a response that frame it, or are a filter's own.
FRAME = frozenset({"id", "object", "status", "model", "usage", "service_tier", "truncation"})
FRAME |= {"previous_response_id", "incomplete_details", "conversation", "moderation", "output"}
FRAME |= {"content_filters", "billing", "prompt_cache_retention", "tool_usage"}
# Fields in which a server repeats what was asked, with its defaults, and their words.
ECHO = frozenset({"instructions", "metadata", "prompt", "prompt_cache_key", "reasoning", "text"})
ECHO |= {"safety_identifier", "tool_choice", "tools", "user", "context_management", "image"}
WORDS = frozenset({"auto", "none", "text", "required", "default", "disabled", "low", "medium"})
WORDS |= {"minimal", "high", "xhigh", "max", "concise", "detailed", "approximate", "current_turn"}
# Fields whose own fields have names that no model chose; others are read with the names in them.
KNOWN = frozenset({"action", "actions", "annotations", "commands", "content", "error", "item"})
KNOWN |= {"operation", "outcome", "output", "outputs", "part", "pending_safety_checks", "queries"}
KNOWN |= {"response", "results", "sources", "summary", "tools", "delta", "command"}
# Where an event stands, which says nothing.
POSITION = frozenset({"sequence_number", "output_index", "content_index", "summary_index"})
POSITION |= {"annotation_index", "command_index", "partial_image_index"}
# What an event's delta goes on with, in its item; a number's name stands for the number.
PLACES: Mapping[str, Path] = {
    "output_text": ("content", "content_index", "text"),
    "refusal": ("content", "content_index", "refusal"),
    "reasoning_text": ("content", "content_index", "text"),
    "reasoning_summary_text": ("summary", "summary_index", "text"),
    "function_call_arguments": ("arguments",),
    "mcp_call_arguments": ("arguments",),
    "custom_tool_call_input": ("input",),
    "code_interpreter_call_code": ("code",),
    "shell_call_command": ("action", "commands", "command_index"),
    "shell_call_output_content": ("output", "command_index"),
}
# Fields in which the event that ends a text says it again.
WHOLE = frozenset({"text", "refusal", "arguments", "input", "code", "command"})

# Fields that hold a picture, by the type of what holds them.
SEALED: Mapping[str, Path] = {
    "computer_screenshot": ("image_url",),
    "image": ("url",),
    "image_generation_call": ("result",),
    "input_image": ("image_url",),
}


def stem(event: Mapping[str, Any]) -> str:
    """The kind of an event without what it does: `output_text` of `response.output_text.done`."""
    return str(event.get("type")).removeprefix("response.").rpartition(".")[0]


def locate(event: Mapping[str, Any]) -> Path:
    """Where in its item an event's text stands."""
    name = stem(event)
    given = (name, *(n for n in sorted(POSITION) if n.startswith(("content", "summary"))))
    return tuple(
        str(event.get(step, "")) if step in POSITION else step for step in PLACES.get(name, given)
    )


class Heard:
    """What one answer has said so far; `asked` is the request, `sealed` what nobody can read."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.asked, self.sealed = asked, ""
        self.known: dict[Path, list[str]] = {}
        self.own: dict[str, set[str]] = {}

    def whole(self, response: Mapping[str, Any]) -> Json:
        """What a whole response says, by place."""
        return self.take({"response": response})

    def take(self, event: Mapping[str, Any]) -> Json:
        """What an event adds, by place."""
        new: Json = {}
        for path, text, grows in self.read(event):
            name, piece = self.learn(path, text, grows)
            if piece:
                new[name] = new.get(name, "") + piece
        return new

    def learn(self, path: Path, text: str, grows: bool) -> tuple[str, str]:
        """What is new in a text at its place. One that contradicts what is known is new."""
        known, name = self.known.setdefault(path, []), "/".join(("", *path))
        if grows:
            known.append(text)
            return name, text
        before = "".join(known)
        if not text or text == before:
            return name, ""
        known[:] = [text]
        if text.startswith(before):
            return name, text[len(before) :]
        return f"{name} again", text

    # -- reading ----------------------------------------------------------------

    def read(self, event: Mapping[str, Any]) -> Iterator[Told]:
        item = ("output", str(event.get("output_index", "")))
        for name, value in event.items():
            if name in COPIES or (name in POSITION and isinstance(value, int)):
                continue
            match name, value:
                case "response", Mapping():
                    yield from self.respond(value)
                case "item", Mapping():
                    yield from self.walk(item, name, value)
                case "part", Mapping():
                    yield from self.walk((*item, *self.part(event)), name, value)
                case "annotation", _:
                    place = str(event.get("annotation_index", ""))
                    spot = (*item, *self.part(event), "annotations", place)
                    yield from self.walk(spot, "annotations", value)
                case "delta", _:
                    yield from self.grow(event, (*item, *locate(event)), value)
                case _, str() if name in WHOLE:
                    yield (*item, *locate(event)), value, False
                case _:
                    yield from self.walk((*item, name), name, value, event)

    def part(self, event: Mapping[str, Any]) -> Path:
        name = "summary" if "summary_index" in event else "content"
        return name, str(event.get(f"{name}_index", ""))

    def grow(self, event: Mapping[str, Any], path: Path, delta: Any) -> Iterator[Told]:
        if event.get("type") == "response.audio.delta":
            self.sealed = self.sealed or "audio"
        else:
            yield from ((spot, text, True) for spot, text, _ in self.walk(path, "delta", delta))

    def respond(self, response: Mapping[str, Any]) -> Iterator[Told]:
        """A response's items, then whatever else it says."""
        items = response.get("output")
        for i, item in enumerate(items if isinstance(items, list) else ()):
            yield from self.walk(("output", str(i)), "item", item)
        for name, value in response.items():
            if name in ECHO:
                yield from self.echo(name, value)
            elif name not in FRAME and value != self.asked.get(name):
                yield from self.walk((name,), name, value)

    def echo(self, name: str, value: Any) -> Iterator[Told]:
        """What a server adds to what was asked."""
        asked = self.asked.get(name)
        if value == asked:
            return
        if name not in self.own:
            self.own[name] = {text for _, text in wire.strings((name,), asked)}
        for path, text in wire.strings((name,), value):
            if text not in self.own[name] and text not in WORDS:
                yield path, text, False

    def walk(
        self, path: Path, name: str, value: Any, holder: Mapping[str, Any] | None = None
    ) -> Iterator[Told]:
        """Every string in a value, under its path. `name` is that of the field that has it."""
        if isinstance(value, str):
            if holder is not None and sealed(holder, name):
                self.sealed = self.sealed or (str(holder.get("type")) if value else "")
            elif name not in MUTE:
                yield path, value, False
        elif not isinstance(value, Mapping | list) or name in COPIES or not value:
            return
        elif name not in KNOWN:
            yield path, wire.dump(value).decode(), False
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from self.walk((*path, str(i)), name, inner)
        else:
            for field in sorted(value, key=lambda field: field != "name"):
                yield from self.walk((*path, str(field)), str(field), value[field], value)


def sealed(holder: Mapping[str, Any], name: str) -> bool:
    """Whether this field holds a picture or a sound, of which words tell nothing."""
    kind = str(holder.get("type"))
    return name == "partial_image_b64" or name in SEALED.get(kind, ())
