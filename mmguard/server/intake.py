"""A caller's pictures, before anything else sees them: fetched once, checked, inlined.

What goes upstream holds the very bytes that were checked, and nothing else is touched: the
order of parts, `detail` and all fields nobody knows stay.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mmguard.errors import ImageError
from mmguard.messages import IMAGE_KINDS
from mmguard.types import Image

Fetch = Callable[[str], Awaitable[Image]]
# Where the address of a picture stands in its part.
NAMES = ("image_url", "image", "url")


async def inline(messages: Any, fetch: Fetch, most: int) -> tuple[Any, Any]:
    """Messages for the upstream, pictures by URL now inside; and the same with `Image` values.

    Raises `ImageError` for more than `most` pictures, and what `fetch` raises.
    """
    if not isinstance(messages, list):
        return messages, messages
    places = [place for message in messages for place in find(message)]
    if len(places) > most:
        raise ImageError(f"{len(places)} pictures: send at most {most} in one request")
    addresses = [locate(part) for part in places]
    images = await asyncio.gather(*map(fetch, addresses))
    known = {id(part): image for part, image in zip(places, images, strict=True)}
    return (
        [rebuild(message, known, send) for message in messages],
        [rebuild(message, known, show) for message in messages],
    )


def find(message: Any) -> list[Mapping[str, Any]]:
    """The parts of a message that are pictures."""
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") in IMAGE_KINDS]


def locate(part: Mapping[str, Any]) -> str:
    """A picture's address. Raises `ImageError` where there is none."""
    named = [name for name in (*NAMES, "base64", "path") if part.get(name) is not None]
    if len(named) > 1:
        # Who reads another field than is checked would see another picture.
        raise ImageError(f"a part names its picture twice: give {' or '.join(named)}")
    found = next((part[name] for name in NAMES if name in part), None)
    address = found.get("url") if isinstance(found, Mapping) else found
    if not isinstance(address, str):
        raise ImageError(f"a part of type {part['type']!r} has no picture: give image_url.url")
    return address


def rebuild(
    message: Any, known: Mapping[int, Image], write: Callable[[Mapping[str, Any], Image], Any]
) -> Any:
    """A message with its pictures written anew; one without pictures is itself."""
    if not find(message):
        return message
    parts = [write(p, known[id(p)]) if id(p) in known else p for p in message["content"]]
    return {**message, "content": parts}


def send(part: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
    """The part as it goes upstream: a data URI stays as it came."""
    if locate(part)[:5].lower() == "data:":
        return part
    uri = f"data:{image.mime};base64,{base64.b64encode(image.data).decode()}"
    name = next(name for name in NAMES if name in part)
    inner = part[name]
    return {**part, name: {**inner, "url": uri} if isinstance(inner, Mapping) else uri}


def show(part: Mapping[str, Any], image: Image) -> Image:
    """The part as the flow sees it, with what stands beside its address."""
    inner = next(part[name] for name in NAMES if name in part)
    extra = {k: v for k, v in inner.items() if k != "url"} if isinstance(inner, Mapping) else {}
    return Image(image.data, image.mime, extra)
