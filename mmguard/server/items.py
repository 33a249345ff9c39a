"""OpenAI's responses: their bodies as values, and answers of the guard's own. Pure.

What stands behind an id (an earlier response, a conversation, a prompt, an item) is the
upstream's memory: it goes on as it is, and no check of this request sees it.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from mmguard.errors import ImageError, InputError
from mmguard.messages import IMAGE_KINDS
from mmguard.server import intake, wire
from mmguard.server.heard import Heard
from mmguard.sse import frame
from mmguard.types import (
    AnyRequest,
    Guarded,
    Image,
    Message,
    Opaque,
    Part,
    Request,
    Role,
    Text,
    Usage,
)

Json = wire.Json
Known = Mapping[int, Image]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant")
TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
PICTURES = (*IMAGE_KINDS, "computer_screenshot")
# Items that tools gave back, that a model said earlier, and that stand for what is elsewhere.
RESULTS = frozenset({"function_call_output", "custom_tool_call_output", "shell_call_output"})
RESULTS |= {"computer_call_output", "local_shell_call_output", "apply_patch_call_output"}
SAID = frozenset({"function_call", "custom_tool_call", "mcp_call", "mcp_list_tools", "reasoning"})
SAID |= {"mcp_approval_request", "mcp_approval_response", "web_search_call", "file_search_call"}
SAID |= {"code_interpreter_call", "local_shell_call", "shell_call", "apply_patch_call", "program"}
SAID |= {"tool_search_call", "tool_search_output", "additional_tools", "computer_call"}
SAID |= {"program_output"}
NAMED = frozenset({"item_reference", "compaction", "compaction_trigger", "configuration_update"})
# Fields of a request that stand for what the upstream remembers.
MEMORY = ("prompt", "previous_response_id", "conversation")
# Tools whose work nobody here can look at.
UNSEEN = frozenset({"image_generation"})
# The caller's options that a further call keeps, by chat's names.
OPTIONS = {"max_output_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p"}
# The fewest tokens that OpenAI's servers let an answer have.
LEAST = 16
# How an answer is called that the upstream does not know.
MARK = "resp_mmguard_"
# What an answer of our own has of the upstream's, and what it repeats of its request.
KEPT: tuple[str, ...] = ("model", "created_at")
SHOWN: Json = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}


# -- requests -----------------------------------------------------------------


def pictures(body: Json) -> Iterator[Mapping[str, Any]]:
    """Every part of a request that is a picture and has an address."""
    items = body.get("input")
    for item in items if isinstance(items, list) else ():
        yield from filter(shown, parts(item))
    yield from filter(shown, variables(body))


def shown(part: Any) -> bool:
    """Whether a part is a picture that can be looked at. Raises `ImageError` for half of one."""
    if not isinstance(part, Mapping) or part.get("type") not in PICTURES:
        return False
    known = [name for name in ("file_id", *intake.NAMES) if part.get(name) is not None]
    if "file_id" in known and len(known) > 1:
        raise ImageError("a part names its picture twice: give image_url or file_id")
    return known != ["file_id"]


def parts(item: Any) -> list[Any]:
    """The parts of an item that may be pictures, in whichever field it has them."""
    if not isinstance(item, Mapping):
        return []
    content = item.get("output" if is_result(item) else "content")
    return content if isinstance(content, list) else [content]


def variables(body: Json) -> list[Any]:
    """What the caller puts into a prompt that the upstream has."""
    prompt = body.get("prompt")
    given = prompt.get("variables") if isinstance(prompt, Mapping) else None
    return list(given.values()) if isinstance(given, Mapping) else []


def is_result(item: Mapping[str, Any]) -> bool:
    return str(item.get("type")) in RESULTS


def enclose(value: Any, known: Known) -> Any:
    """The body with pictures by URL inside: what was checked is what goes up."""
    if isinstance(value, Mapping):
        if id(value) in known:
            return intake.send(value, known[id(value)])
        return {name: enclose(inner, known) for name, inner in value.items()}
    return [enclose(inner, known) for inner in value] if isinstance(value, list) else value


def read(body: Json, known: Known) -> Request:
    """A body as a request. Raises `InputError` for what is no conversation."""
    told: list[Message] = []
    if (instructions := body.get("instructions")) is not None:
        told.append(Message("system", read_parts("instructions", instructions, known)))
    if given := variables(body):
        told.append(Message("user", read_parts("prompt.variables", given, known)))
    told += read_input(body, known)
    if unseen := tuple(read_tools(body)):
        told.append(Message("tool", unseen))
    options = {chat: body[name] for name, chat in OPTIONS.items() if name in body}
    reasoning = body.get("reasoning")
    if isinstance(reasoning, Mapping) and reasoning.get("effort"):
        options["reasoning_effort"] = reasoning["effort"]
    return Request(tuple(told), options)


def read_input(body: Json, known: Known) -> Iterator[Message]:
    given = body.get("input")
    if isinstance(given, str):
        yield Message("user", (Text(given),))
        return
    if given in (None, []) and any(body.get(name) for name in MEMORY):
        return
    if not isinstance(given, list) or not given:
        raise InputError("input: give a text, or a list of at least one item")
    for i, item in enumerate(given):
        yield from read_item(f"input[{i}]", item, known)


def read_item(where: str, item: Any, known: Known) -> Iterator[Message]:
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: give an object, not {type(item).__name__}")
    kind = str(item.get("type") or ("message" if "role" in item else "item_reference"))
    if kind == "message":
        if item.get("role") not in ROLES:
            raise InputError(f"{where}: role {item.get('role')!r}: use one of {', '.join(ROLES)}")
        yield Message(item["role"], read_parts(f"{where}.content", item.get("content"), known))
    elif is_result(item):
        yield Message("tool", read_parts(f"{where}.output", item.get("output"), known))
    elif kind in SAID:
        heard = Heard({})
        text = wire.text_of(heard.whole({"output": [item]}))
        unseen = (Opaque(heard.sealed, item),) if heard.sealed else ()
        yield Message("assistant", (Text(text), *unseen))
    elif kind not in NAMED:
        yield Message("user", (Opaque(kind, item),))


def read_parts(where: str, content: Any, known: Known) -> tuple[Part, ...]:
    if content is None or isinstance(content, str):
        return (Text(content),) if content else ()
    given = content if isinstance(content, list) else [content]
    return tuple(read_part(f"{where}[{i}]", part, known) for i, part in enumerate(given))


def read_part(where: str, part: Any, known: Known) -> Part:
    match part:
        case str():
            return Text(part)
        case {"type": str(kind), "text": str(text)} if kind in TEXTS:
            return Text(text)
        case {"type": str(kind)} if kind in TEXTS:
            raise InputError(f"{where}.text must be a string")
        case {"type": "refusal", "refusal": str(text)}:
            return Text(text)
        case {"stdout": str(out), "stderr": str(err)}:
            return Text(f"{out}\n{err}")
        case {"type": str()} if id(part) in known:
            return show(part, known[id(part)])
        case {"type": str(kind)}:
            return Opaque(kind, part)
    raise InputError(f"{where} must be an object with a type")


def show(part: Mapping[str, Any], image: Image) -> Image:
    detail = part.get("detail")
    return Image(image.data, image.mime, {"detail": detail} if isinstance(detail, str) else {})


def read_tools(body: Json) -> Iterator[Opaque]:
    """Tools that make what nobody here can look at."""
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping) and str(tool.get("type")) in UNSEEN:
            yield Opaque(str(tool["type"]), tool)


def write(request: AnyRequest, model: str) -> Json:
    """A request of the guard's own as a body; the upstream need not remember it."""
    given = request.options
    options = {name: given[chat] for name, chat in OPTIONS.items() if given.get(chat) is not None}
    if "max_output_tokens" in options:
        options["max_output_tokens"] = max(LEAST, wire.number(options["max_output_tokens"]))
    if effort := given.get("reasoning_effort"):
        options["reasoning"] = {"effort": effort}
    turns = [write_turn(message) for message in request.messages]
    said = [turn for turn in turns if turn["content"]]
    return {"model": model, **options, "store": False, "input": said}


def write_turn(message: Any) -> Json:
    role = message.role if message.role in ROLES else "user"
    kind = "output_text" if role == "assistant" else "input_text"
    written = (write_part(part, kind) for part in message.parts)
    return {"role": role, "content": [part for part in written if part]}


def write_part(part: Part, kind: str) -> Json | None:
    if isinstance(part, Text):
        return {"type": kind, "text": part.text}
    if isinstance(part, Image):
        uri = f"data:{part.mime};base64,{base64.b64encode(part.data).decode()}"
        return {"type": "input_image", "detail": "auto", **part.extra, "image_url": uri}
    return dict(part.raw) if part.kind.startswith("input_") else None


# -- answers ------------------------------------------------------------------


def ending(response: Mapping[str, Any]) -> str:
    """Why an answer ended, in chat's words; empty while it goes on."""
    status, details = response.get("status"), response.get("incomplete_details")
    if status in ("in_progress", "queued"):
        return ""
    reason = details.get("reason") if isinstance(details, Mapping) else None
    if status == "incomplete":
        return {"max_output_tokens": "length"}.get(str(reason), str(reason))
    return "stop" if status in (None, "completed") else str(status)


def spoken(response: Mapping[str, Any]) -> str:
    """The text of an answer's messages, or their refusal: what a further call was for."""
    items = response.get("output")
    found = [part for item in (items if isinstance(items, list) else ()) for part in inside(item)]
    texts = [part[name] for name in ("text", "refusal") for part in found if name in part]
    return "".join(text for text in texts if isinstance(text, str))


def inside(item: Any) -> list[Mapping[str, Any]]:
    """The parts of a message."""
    content = item.get("content") if isinstance(item, Mapping) else None
    if not isinstance(content, list) or item.get("type") != "message":
        return []
    return [part for part in content if isinstance(part, Mapping)]


def is_plain(body: Mapping[str, Any]) -> bool:
    """Whether an answer is text for people, and not in a format that a program reads."""
    form = body.get("text")
    told = form.get("format") if isinstance(form, Mapping) else None
    return not isinstance(told, Mapping) or told.get("type") in (None, "text")


def empty(asked: Mapping[str, Any]) -> Json:
    """A response that no model was asked for. Its name tells that the upstream has none such."""
    made = {"id": f"{MARK}{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time())}
    repeated = {name: asked.get(name, default) for name, default in SHOWN.items()}
    told = {"status": "in_progress", "error": None, "incomplete_details": None}
    model = str(asked.get("model", ""))
    return {**made, **told, "model": model, **repeated, "output": [], "usage": None}


def close(response: Json, guarded: Guarded, usage: Any) -> Json:
    """A response at its end, with what the guard did."""
    status, reason = "completed", None
    if guarded.action == "block" or guarded.finish == "length":
        status = "incomplete"
        reason = "content_filter" if guarded.action == "block" else "max_output_tokens"
    details = {"incomplete_details": {"reason": reason} if reason else None}
    told = {"usage": add_usage(usage, wire.extra_usage([guarded]))}
    return {**response, "status": status, **details, **told, "mmguard": wire.account(guarded)}


def mend(response: Json, guarded: Guarded, asked: Json, in_content: bool) -> Json:
    """A response of one message: what the guard made of what was said, or a refusal."""
    kept = {name: response[name] for name in KEPT if name in response}
    blocked = guarded.action == "block"
    content = [text_part(guarded.text)] if in_content or not blocked else []
    if blocked:
        content.append({"type": "refusal", "refusal": guarded.text})
    made = close({**empty(asked), **kept}, guarded, response.get("usage"))
    return {**made, "output": [message(content, made["status"])]}


def message(content: list[Json], status: str) -> Json:
    made = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
    return {**made, "status": status, "content": content}


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def read_usage(body: Mapping[str, Any]) -> Usage:
    usage = body.get("usage")
    told = usage if isinstance(usage, Mapping) else {}
    return Usage(wire.number(told.get("input_tokens")), wire.number(told.get("output_tokens")))


def add_usage(reported: Any, extra: Usage) -> Json:
    """The upstream's usage and that of further calls; details stay the upstream's."""
    known = read_usage({"usage": reported}) + extra
    kept = reported if isinstance(reported, Mapping) else {}
    details: Json = {"input_tokens_details": {"cached_tokens": 0}}
    details |= {"output_tokens_details": {"reasoning_tokens": 0}}
    total = {"input_tokens": known.prompt, "output_tokens": known.completion}
    return {**details, **kept, **total, "total_tokens": known.prompt + known.completion}


def event(kind: str, **fields: Any) -> bytes:
    """An event of a stream, named as servers name it."""
    return b"event: " + kind.encode() + b"\n" + frame(wire.dump({"type": kind, **fields}))
