"""Anthropic's messages: their bodies as values, answers as what they say, and back. Pure.

What is not known here by name is read as text where it speaks, and opaque where it is sent.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from mmguard.errors import ImageError, InputError
from mmguard.server import wire
from mmguard.sse import frame
from mmguard.types import (
    AnyRequest,
    Guarded,
    Image,
    Message,
    Opaque,
    Part,
    Request,
    Text,
    Usage,
)

Json = wire.Json
Known = Mapping[int, Image]
# Strings of an answer that say nothing to its reader, and fields that frame it.
MUTE = frozenset({"signature", "encrypted_content", "encrypted_index", "tool_use_id", "file_id"})
FRAME = frozenset({"id", "type", "role", "model", "stop_reason", "stop_sequence", "usage", "index"})
FRAME |= {"container"}
# What a further call keeps of the caller's options.
OPTIONS = ("max_tokens", "temperature", "top_k", "top_p", "stop_sequences")
LONG = 1024


# -- requests -----------------------------------------------------------------


def pictures(body: Json) -> Iterator[Mapping[str, Any]]:
    """Every picture of a conversation that is sent or linked to, as the block that holds it."""
    given = body.get("messages")
    messages = given if isinstance(given, list) else []
    turns = [message.get("content") for message in messages if isinstance(message, Mapping)]
    for content in (body.get("system"), *turns):
        yield from find(content)


def find(content: Any) -> Iterator[Mapping[str, Any]]:
    for block in content if isinstance(content, list) else ():
        match block:
            case {"type": "image", "source": {"type": "base64" | "url"}}:
                yield block
            case {"type": "tool_result", "content": inner}:
                yield from find(inner)


def locate(block: Mapping[str, Any]) -> str:
    """A picture's address. Raises `ImageError` where there is none."""
    source = block.get("source")
    match source:
        case {"type": "base64", "media_type": str(mime), "data": str(data)}:
            return f"data:{mime};base64,{data}"
        case {"type": "url", "url": str(url)}:
            return url
    raise ImageError("an image block has no picture: give a source of type base64 or url")


def enclose(value: Any, known: Known) -> Any:
    """The body with pictures by URL inside: what was checked is what goes up."""
    if isinstance(value, Mapping):
        if id(value) in known and value["source"]["type"] == "url":
            image = known[id(value)]
            data = base64.b64encode(image.data).decode()
            source = {"type": "base64", "media_type": image.mime, "data": data}
            return {**value, "source": source}
        return {name: enclose(inner, known) for name, inner in value.items()}
    return [enclose(inner, known) for inner in value] if isinstance(value, list) else value


def read(body: Json, known: Known) -> Request:
    """A body as a request. Raises `InputError` for what is no conversation."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise InputError("messages: give a list of at least one message")
    told = tuple(read_parts("system", body.get("system"), known))
    said = [one for i, message in enumerate(given) for one in read_message(i, message, known)]
    system = [Message("system", told)] if told else []
    options = {name: body[name] for name in OPTIONS if name in body}
    return Request((*system, *said), options)


def read_message(index: int, message: Any, known: Known) -> Iterator[Message]:
    """A turn; what tools answered comes before it, as theirs."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or message.get("role") not in ("user", "assistant"):
        raise InputError(f"{where}: give a mapping with role user or assistant")
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    results = list(filter(is_result, blocks))
    if results:
        content = [block for block in blocks if not is_result(block)]
        inner = (read_parts(f"{where}.tool_result", b.get("content"), known) for b in results)
        yield Message("tool", tuple(part for parts in inner for part in parts))
    if content or not results:
        yield Message(message["role"], tuple(read_parts(where, content, known)))


def is_result(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "tool_result"


def read_parts(where: str, content: Any, known: Known) -> Iterator[Part]:
    if content is None:
        return
    if isinstance(content, str):
        yield Text(content)
        return
    if not isinstance(content, list):
        raise InputError(f"{where}.content must be text or a list of blocks")
    for i, block in enumerate(content):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise InputError(f"{where}.content[{i}] must be a mapping with a type")
        yield read_block(f"{where}.content[{i}]", block, known)


def read_block(where: str, block: Mapping[str, Any], known: Known) -> Part:
    match block:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "text"}:
            raise InputError(f"{where}.text must be a string")
        case {"type": "image"} if id(block) in known:
            return known[id(block)]
        case {"type": "tool_use" | "server_tool_use" | "thinking" | "redacted_thinking"}:
            return Text(speak({"content": [block]}))
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return Text(text)
    return Opaque(block["type"], block)


def write(request: AnyRequest, model: str) -> Json:
    """A request of the guard's own as a body."""
    turns = [(m.role, [write_part(part) for part in m.parts]) for m in request.messages]
    system = [part for role, parts in turns if role in ("system", "developer") for part in parts]
    said = [
        {"role": "assistant" if role == "assistant" else "user", "content": parts}
        for role, parts in turns
        if role not in ("system", "developer") and parts
    ]
    options = {name: request.options[name] for name in OPTIONS if name in request.options}
    body = {"model": model, "max_tokens": LONG, **options, "messages": said}
    return {**body, "system": system} if system else body


def write_part(part: Part) -> Any:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        data = base64.b64encode(part.data).decode()
        return {
            "type": "image",
            "source": {"type": "base64", "media_type": part.mime, "data": data},
        }
    return part.raw


# -- answers ------------------------------------------------------------------


def speaking(message: Mapping[str, Any]) -> Json:
    """The fields of a message that say something."""
    said = {name: quiet(value) for name, value in message.items() if name not in FRAME}
    # What was said comes before why it ended.
    return {"content": said.pop("content", None), **said}


def quiet(value: Any) -> Any:
    """A value without the strings that nobody reads."""
    if isinstance(value, Mapping):
        sealed = MUTE | {"data"} if value.get("type") == "redacted_thinking" else MUTE
        said = {name: quiet(inner) for name, inner in value.items() if name not in sealed}
        # What a tool is called with is read with the names in it, as its stream is.
        if value.get("input"):
            said["input"] = wire.dump(value["input"]).decode()
        return said
    return [quiet(inner) for inner in value] if isinstance(value, list) else value


def speak(message: Mapping[str, Any]) -> str:
    return wire.text_of(speaking(message))


DELTAS = {"partial_json": "input"}


def hear(event: Mapping[str, Any]) -> Json:
    """What an event of a stream adds, under the path of its block."""
    kind, index, delta = event.get("type"), str(event.get("index", 0)), event.get("delta")
    if kind == "message_start":
        return speaking(event.get("message") or {})
    if kind == "content_block_start":
        return {"content": {index: quiet(event.get("content_block"))}}
    if kind == "content_block_delta" and isinstance(delta, Mapping):
        said = quiet(delta)
        names = {k: v for k, v in DELTAS.items() if v not in said}
        return {"content": {index: {names.get(k, k): v for k, v in said.items()}}}
    if isinstance(delta, Mapping):
        return speaking({**event, "delta": speaking(delta)})
    return speaking(event)


def mend(message: Mapping[str, Any], guarded: Guarded) -> Json:
    """A message with what the guard made of it in the place of what it said."""
    kept = {name: message[name] for name in ("id", "model") if name in message}
    usage = dict(message.get("usage") or {"input_tokens": 0, "output_tokens": 0})
    extra = wire.extra_usage([guarded])
    for name, tokens in (("input_tokens", extra.prompt), ("output_tokens", extra.completion)):
        usage[name] = (usage.get(name) or 0) + tokens
    said = {"content": [{"type": "text", "text": guarded.text}], **ending(guarded), "usage": usage}
    return {**empty(""), **kept, **said, "mmguard": wire.account(guarded)}


def ending(guarded: Guarded) -> Json:
    """Why an answer ends that is not the upstream's."""
    reason = "max_tokens" if guarded.finish in ("length", "max_tokens") else "end_turn"
    return {
        "stop_reason": "refusal" if guarded.action == "block" else reason,
        "stop_sequence": None,
    }


def empty(model: str) -> Json:
    """A message that no model was asked for."""
    made = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
    return {**made, "content": [], "stop_reason": None, "stop_sequence": None}


def read_usage(body: Mapping[str, Any]) -> Usage:
    usage = body.get("usage")
    told = usage if isinstance(usage, Mapping) else {}
    return Usage(wire.number(told.get("input_tokens")), wire.number(told.get("output_tokens")))


def event(kind: str, **fields: Any) -> bytes:
    """An event of a stream, named as their clients want it."""
    return b"event: " + kind.encode() + b"\n" + frame(wire.dump({"type": kind, **fields}))


# -- errors -------------------------------------------------------------------

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def error(status: int, body: Any) -> Any:
    """A failure in Anthropic's form; what already has it stays."""
    if isinstance(body, Mapping) and body.get("type") == "error":
        return body
    inner = body.get("error") if isinstance(body, Mapping) else None
    told = inner.get("message") if isinstance(inner, Mapping) else json.dumps(body)
    kind = KINDS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(told)}}
