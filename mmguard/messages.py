"""Conversations in the HuggingFace form or OpenAI's, read into `Request` values.

Knows the two forms and nothing of models. A part of a kind it does not know becomes
`Opaque`, so that a policy decides about it and nothing slips by unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from mmguard.errors import InputError
from mmguard.media import Fetch, load_image, unbase64
from mmguard.types import Image, Message, Opaque, Part, Request, Role, Text

ROLES: tuple[Role, ...] = get_args(Role)
TEXT_KINDS = ("text", "input_text", "output_text")
IMAGE_KINDS = ("image", "image_url", "input_image")


def parse(messages: Any, options: Mapping[str, Any] | None = None, **how: Any) -> Request:
    """A `Request` from a string, a list of message mappings, or values as they are.

    Raises `InputError` for an empty list, an unknown role or a malformed part, and
    `ImageError` for a picture that cannot be read. `fetch=` replaces `media.fetch`.
    """
    fetch: Fetch | None = how.pop("fetch", None)
    if isinstance(messages, Request):
        return Request(messages.messages, {**messages.options, **(options or {})})
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Iterable) or isinstance(messages, Mapping):
        raise InputError(f"messages must be a list, not {type(messages).__name__}")
    parsed = tuple(parse_message(i, message, fetch) for i, message in enumerate(messages))
    if not parsed:
        raise InputError("messages is empty: give at least one message")
    return Request(parsed, dict(options or {}))


def parse_message(index: int, message: Any, fetch: Fetch | None) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise InputError(f"messages[{index}] must be a mapping, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"messages[{index}] has role {role!r}: use one of {', '.join(ROLES)}")
    where = f"messages[{index}].content"
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    return Message(role, parse_content(where, message.get("content"), fetch), extra)


def parse_content(where: str, content: Any, fetch: Fetch | None) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, list | tuple):
        raise InputError(f"{where} must be text or a list of parts, not {type(content).__name__}")
    return tuple(parse_part(f"{where}[{i}]", part, fetch) for i, part in enumerate(content))


def parse_part(where: str, part: Any, fetch: Fetch | None) -> Part:
    if isinstance(part, Text | Image | Opaque):
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f"{where} must be a mapping with a 'type', got {type(part).__name__}")
    kind = part["type"]
    if kind in TEXT_KINDS:
        return parse_text(where, part)
    if kind in IMAGE_KINDS:
        return parse_image(where, part, fetch)
    return Opaque(kind, part)


def parse_text(where: str, part: Mapping[str, Any]) -> Text:
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}.text must be a string, not {type(text).__name__}")
    return Text(text)


def parse_image(where: str, part: Mapping[str, Any], fetch: Fetch | None) -> Image:
    if "base64" in part:
        return load_image(unbase64(part["base64"]))
    found = next((part[key] for key in ("image", "image_url", "url", "path") if key in part), None)
    extra: dict[str, Any] = {}
    if isinstance(found, Mapping):
        extra = {key: value for key, value in found.items() if key != "url"}
        found = found.get("url")
    if found is None:
        raise InputError(f"{where} names no picture: give 'image', 'url', 'path' or 'image_url'")
    image = load_image(found, fetch)
    return Image(image.data, image.mime, extra) if extra else image
