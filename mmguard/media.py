"""Pictures from wherever they are: one set of bytes, checked before anything decodes them.

Size and format are read from the header alone; only then is a picture decoded. What comes
out is an `Image` whose bytes are the ones that detectors see and models get.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from mmguard.errors import ImageError, MissingExtra, OversizeError
from mmguard.headers import count_gif, count_scans
from mmguard.types import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
# Fourteen bytes make libjpeg pass over all pixels once more; cameras and editors need ten.
MAX_SCANS = 100
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# What PNG stores without loss; any other mode becomes a TIFF, which stores the rest.
PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
# Phones write a JPEG with its previews behind it as this.
JPEG_KINDS = ("JPEG", "MPO")
BASE64 = re.compile(r"; *base64 *$", re.IGNORECASE)

Fetch = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture may have at most, as its header tells; no `frames` means any number."""

    bytes: int
    pixels: int
    frames: int | None = None


def load_image(source: Any, fetch: Fetch | None = None) -> Image:
    """A picture from a path, bytes, data URI, URL, array or PIL picture.

    Raises `ImageError` for what is missing, cut short, too large or no picture. A given
    `fetch` gets every address that is no data URI, paths too: what strangers send must not
    name files here. By default `media.fetch` gets http(s) URLs, and paths are read.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return check(bytes(source), "the given bytes")
    if isinstance(source, str):
        return check(resolve(source, fetch), shorten(source))
    if isinstance(source, os.PathLike):
        return check(read(Path(source)), str(source))
    return check(encode(source), "the given picture")


def resolve(source: str, given: Fetch | None) -> bytes:
    scheme = source[:8].lower()
    if scheme.startswith("data:"):
        return parse_uri(source)
    if given or scheme.startswith(("http://", "https://")):
        return (given or fetch)(source)
    if scheme.startswith("file://"):
        return read(Path(url2pathname(urlsplit(source).path)))
    return read(Path(source))


def shorten(source: str) -> str:
    return source if len(source) <= 80 else source[:60] + "..."


def read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise OversizeError(f"{path} has more than {MAX_BYTES} bytes: send a smaller picture")
        return path.read_bytes()
    except (OSError, ValueError) as exc:
        if isinstance(exc, ImageError):
            raise
        raise ImageError(f"no picture at {shorten(str(path))!r}: {exc}") from exc


def parse_uri(uri: str) -> bytes:
    """The bytes of a `data:` URI (RFC 2397, read as leniently as browsers do)."""
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"{shorten(uri)!r} is no data URI: it has no comma before its data")
    if not BASE64.search(head):
        return unquote_to_bytes(body)
    return unbase64(unquote(body) if "%" in body else body)


def unbase64(text: str | bytes) -> bytes:
    """The bytes of base64 in either alphabet, padded or not, with or without white space."""
    words = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    packed = "".join(words.split()).rstrip("=")
    try:
        plain = packed.replace("-", "+").replace("_", "/")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ImageError(f"{shorten(words)!r} is not base64: {exc}") from exc


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
            raise OversizeError(f"{shorten(url)!r} has more than {MAX_BYTES} bytes")
    return bytes(data)


def check(data: bytes, name: str, limits: Limits | None = None) -> Image:
    """An `Image` of these bytes, once they decode within the limits.

    Raises `OversizeError` beyond a limit, `ImageError` for what is no picture or damaged.
    """
    limits = limits or Limits(MAX_BYTES, MAX_PIXELS)
    if len(data) > limits.bytes:
        raise OversizeError(f"{name} has {len(data)} bytes, more than {limits.bytes}")
    picture = open_header(data, name, limits.pixels)
    if limits.frames is not None and count_frames(picture, data, limits.frames) > limits.frames:
        raise OversizeError(f"{name} has more than {limits.frames} frames: send a still picture")
    is_jpeg = picture.format in JPEG_KINDS
    if is_jpeg and count_scans(data, MAX_SCANS + 1) > MAX_SCANS:
        raise OversizeError(f"{name} has more than {MAX_SCANS} scans: save it anew")
    load(picture, name)
    return Image(data, f"image/{'jpeg' if is_jpeg else (picture.format or 'png').lower()}")


def count_frames(picture: Picture, data: bytes, most: int) -> int:
    """How many frames an animation has, or `most + 1` if more; decodes none of them.

    Previews behind a JPEG are none: who reads a JPEG reads the first.
    """
    if picture.format == "GIF":
        return count_gif(data, most + 1)
    if picture.format == "TIFF":
        return count_tiff(data, most)
    return 1 if picture.format in JPEG_KINDS else getattr(picture, "n_frames", 1)


def count_tiff(data: bytes, most: int) -> int:
    try:
        # Pillow counts all of them, in time that grows with their square.
        open_header(data, "the picture").seek(most)
    except Exception:
        return most
    return most + 1


def decode(image: Image) -> Picture:
    """The decoded picture; raises `ImageError`. Orientation tags are left as they are."""
    picture = open_header(image.data, "the picture")
    load(picture, "the picture")
    return picture


def open_header(data: bytes, name: str, most: int | None = None) -> Picture:
    """The picture before any pixel is decoded; raises `ImageError`."""
    from PIL import Image as pil

    most = MAX_PIXELS if most is None else most
    try:
        picture = pil.open(io.BytesIO(data), formats=FORMATS)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as exc:
        raise OversizeError(f"{name} has more than {most} pixels: send it smaller") from exc
    except Exception as exc:
        raise ImageError(f"{name} is no {', '.join(FORMATS)} picture") from exc
    width, height = picture.size
    if width * height > most:
        raise OversizeError(
            f"{name} is {width} x {height}, more than {most} pixels: send it smaller"
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
