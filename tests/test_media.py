"""Pictures and messages: every form in, and every bad one refused with a reason."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image as pil

from mmguard import media
from mmguard.errors import ImageError, InputError
from mmguard.media import decode, fetch, load_image
from mmguard.messages import parse
from mmguard.types import Image, Message, Opaque, Request, Text
from tests.world import png

RED = png()


def uri(data: bytes = RED) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def huge(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its body could ever hold."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 90) + b"IDAT" + b"\0" * 94


def test_every_source_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "red one.png"
    path.write_bytes(RED)
    forms = [RED, bytearray(RED), path, str(path), path.as_uri(), uri(), Image(RED)]
    assert {load_image(form).data for form in forms} == {RED}
    assert load_image("https://x/y.png", lambda url: RED) == Image(RED)
    assert load_image(path).mime == "image/png"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F"])
def test_pil_pictures_survive(mode: str) -> None:
    picture = pil.new(mode, (5, 4), 1)
    found = decode(load_image(picture))
    assert (found.mode, found.size) == (mode, (5, 4))
    assert found.tobytes() == picture.tobytes()


def test_arrays() -> None:
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert (np.asarray(decode(load_image(array))) == array).all()
    with pytest.raises(ImageError, match="dict is no picture"):
        load_image({"not": "a picture"})


def test_percent_encoded_uri() -> None:
    with pytest.raises(ImageError, match="no PNG"):
        load_image("data:text/plain,hello%20there")


BAD_SOURCES: list[tuple[Any, str]] = [
    ("nowhere/to/be/found.png", "no picture at"),
    ("x" * 5000, "no picture at"),
    ("a\0b.png", "no picture at"),
    (b"", "no PNG"),
    (b"GIF89a but not really", "no PNG|damaged"),
    (RED[:-30], "cut short or damaged"),
    (huge(30_000, 30_000), "pixels"),
    (huge(12_000, 8_000), "pixels"),
    (huge(9_000, 8_000), "9000 x 8000"),
    ("data:image/png;base64", "no comma"),
    ("data:image/png;base64,@@@", "not base64"),
]


@pytest.mark.parametrize(("source", "reason"), BAD_SOURCES)
def test_bad_pictures(source: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(source)


def test_a_text_file_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "words.png"
    path.write_text("only words", encoding="utf-8")
    with pytest.raises(ImageError, match=r"words\.png is no PNG"):
        load_image(path)


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_BYTES", 50)
    path = tmp_path / "big.png"
    path.write_bytes(RED + b"\0" * 100)
    for source in (path, RED + b"\0" * 100):
        with pytest.raises(ImageError, match="more than 50"):
            load_image(source)


def client(handler: Any) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(handler))


def test_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    good = client(lambda request: httpx.Response(200, content=RED))
    assert fetch("https://example.test/a.png", good) == RED
    with pytest.raises(ImageError, match="answered 302"):
        fetch("https://example.test", client(lambda r: httpx.Response(302)))
    monkeypatch.setattr(media, "MAX_BYTES", 50)
    with pytest.raises(ImageError, match="more than 50"):
        fetch("https://example.test", client(lambda r: httpx.Response(200, content=b"\0" * 99)))


def test_fetch_failure() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch("https://example.test", client(refuse))


PARTS: list[dict[str, Any]] = [
    {"type": "image", "image": RED},
    {"type": "image", "url": uri()},
    {"type": "image", "base64": base64.b64encode(RED).decode()},
    {"type": "image_url", "image_url": {"url": uri()}},
    {"type": "image_url", "image_url": uri()},
    {"type": "input_image", "image_url": uri()},
]


@pytest.mark.parametrize("part", PARTS)
def test_picture_parts(part: dict[str, Any]) -> None:
    request = parse([{"role": "user", "content": [part, {"type": "text", "text": "hi"}]}])
    assert request == Request((Message("user", (Image(RED), Text("hi"))),))


def test_detail_is_kept() -> None:
    part = {"type": "image_url", "image_url": {"url": uri(), "detail": "low"}}
    assert parse([{"role": "user", "content": [part]}]).images[0].extra == {"detail": "low"}


def test_forms_of_messages() -> None:
    plain = Request((Message("user", (Text("hi"),)),), {"seed": 1})
    assert parse("hi", {"seed": 1}) == plain
    assert parse([Message("user", (Text("hi"),))], {"seed": 1}) == plain
    assert parse(plain, {"seed": 2}).options == {"seed": 2}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert parse([call]).messages[0].extra == {"tool_calls": [{"id": "1"}]}
    part = Text("hi")
    assert parse([{"role": "user", "content": [part]}]).query == "hi"


def test_unknown_parts_are_opaque() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": ""}}
    request = parse([{"role": "user", "content": [sound]}])
    assert request.opaque == (Opaque("input_audio", sound),)


BAD_MESSAGES: list[tuple[Any, str]] = [
    ([], "messages is empty"),
    ({}, "must be a list, not dict"),
    (7, "must be a list, not int"),
    ([7], r"messages\[0\] must be a mapping"),
    ([{"content": "hi"}], "role None"),
    ([{"role": "root", "content": "hi"}], "role 'root': use one of system"),
    ([{"role": "user", "content": 7}], r"messages\[0\]\.content must be text or a list"),
    ([{"role": "user", "content": ["hi"]}], r"content\[0\] must be a mapping"),
    ([{"role": "user", "content": [{"type": "text"}]}], r"text must be a string"),
    ([{"role": "user", "content": [{"type": "image"}]}], "names no picture"),
]


@pytest.mark.parametrize(("messages", "reason"), BAD_MESSAGES)
def test_bad_messages(messages: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse(messages)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_an_error(data: bytes) -> None:
    try:
        decode(load_image(data))
    except ImageError:
        return


@given(st.integers(0, len(RED)), st.binary(max_size=4))
def test_damaged_pictures_never_crash(where: int, junk: bytes) -> None:
    try:
        found = decode(load_image(RED[:where] + junk + RED[where + len(junk) :]))
    except ImageError:
        return
    assert found.size[0] * found.size[1] <= media.MAX_PIXELS
