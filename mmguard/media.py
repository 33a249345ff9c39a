"""Pictures from wherever they are: one set of bytes, checked before anything decodes them.

Size and format are read from the header alone; only then is a picture decoded. What comes
out is an `Image` whose bytes are the ones that detectors see and models get.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from mmguard.errors import ImageError, MissingExtra
from mmguard.types import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# What PNG stores without loss; any other mode becomes a TIFF, which stores the rest.
PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})

Fetch = Callable[[str], bytes]


def load_image(source: Any, fetch: Fetch | None = None) -> Image:
    """A picture from a path, bytes, data URI, URL, array or PIL picture.

    Raises `ImageError` for what is missing, cut short, too large or no picture. `fetch`
    gets the bytes of http(s) URLs; by default `media.fetch`.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return check(bytes(source), "the given bytes")
    if isinstance(source, str):
        return check(resolve(source, fetch or globals()["fetch"]), shorten(source))
    if isinstance(source, os.PathLike):
        return check(read(Path(source)), str(source))
    return check(encode(source), "the given picture")


def resolve(source: str, fetch: Fetch) -> bytes:
    scheme = source[:8].lower()
    if scheme.startswith("data:"):
        return parse_uri(source)
    if scheme.startswith(("http://", "https://")):
        return fetch(source)
    if scheme.startswith("file://"):
        return read(Path(url2pathname(urlsplit(source).path)))
    return read(Path(source))


def shorten(source: str) -> str:
    return source if len(source) <= 80 else source[:60] + "..."


def read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path} has more than {MAX_BYTES} bytes: send a smaller picture")
        return path.read_bytes()
    except (OSError, ValueError) as exc:
        if isinstance(exc, ImageError):
            raise
        raise ImageError(f"no picture at {shorten(str(path))!r}: {exc}") from exc


def parse_uri(uri: str) -> bytes:
    """The bytes of a `data:` URI (RFC 2397)."""
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"{shorten(uri)!r} is no data URI: it has no comma before its data")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    return unbase64(body)


def unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ImageError(f"{shorten(text)!r} is not base64: {exc}") from exc


def fetch(url: str, client: Any = None) -> bytes:
    """The bytes behind an http(s) URL, at most `MAX_BYTES` of them, within ten seconds a read.

    Redirects are refused: name the picture's final address.
    """
    try:
        import httpx
    except ImportError as exc:
        raise MissingExtra("httpx", "hf", "a picture by URL") from exc
    try:
        with client or httpx.Client(timeout=10) as session, session.stream("GET", url) as response:
            if response.status_code != 200:
                raise ImageError(f"{shorten(url)!r} answered {response.status_code}, not 200")
            return collect(response.iter_bytes(), url)
    except httpx.HTTPError as exc:
        raise ImageError(f"{shorten(url)!r} cannot be fetched: {exc!r}") from exc


def collect(pieces: Any, url: str) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > MAX_BYTES:
            raise ImageError(f"{shorten(url)!r} has more than {MAX_BYTES} bytes")
    return bytes(data)


def check(data: bytes, name: str) -> Image:
    """An `Image` of these bytes, once they decode within the limits."""
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} has {len(data)} bytes, more than {MAX_BYTES}")
    picture = open_header(data, name)
    load(picture, name)
    return Image(data, f"image/{(picture.format or 'png').lower()}")


def decode(image: Image) -> Picture:
    """The decoded picture; raises `ImageError`. Orientation tags are left as they are."""
    picture = open_header(image.data, "the picture")
    load(picture, "the picture")
    return picture


def open_header(data: bytes, name: str) -> Picture:
    from PIL import Image as pil

    try:
        picture = pil.open(io.BytesIO(data), formats=FORMATS)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as exc:
        raise ImageError(f"{name} has more than {MAX_PIXELS} pixels: send it smaller") from exc
    except (OSError, ValueError, SyntaxError) as exc:
        raise ImageError(f"{name} is no {', '.join(FORMATS)} picture: {exc}") from exc
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height}, more than {MAX_PIXELS} pixels: send it smaller"
        )
    return picture


def load(picture: Picture, name: str) -> None:
    try:
        picture.load()
    except Exception as exc:
        raise ImageError(f"{name} is cut short or damaged: {exc}") from exc


def encode(source: Any) -> bytes:
    """A PIL picture or an array, without loss: PNG, or TIFF for modes that PNG lacks."""
    from PIL import Image as pil

    picture = source if isinstance(source, pil.Image) else from_array(source)
    buffer = io.BytesIO()
    try:
        if picture.mode in PNG_MODES:
            picture.save(buffer, "PNG", compress_level=1)
        else:
            picture.save(buffer, "TIFF")
    except (OSError, ValueError, SyntaxError) as exc:
        raise ImageError(f"the given picture cannot be read: {exc}") from exc
    return buffer.getvalue()


def from_array(source: Any) -> Picture:
    from PIL import Image as pil

    try:
        return pil.fromarray(source)
    except (AttributeError, TypeError, ValueError) as exc:
        raise ImageError(
            f"{type(source).__name__} is no picture: give a path, bytes, URL or PIL picture"
        ) from exc
