"""Small copies of pictures: small, whole, upright, and only where they are asked for."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image as pil

from mmguard.server.entry import Entry
from mmguard.server.thumbnails import SIDE, thumbnail
from mmguard.server.visit import Visit
from mmguard.types import Guarded, Image
from tests.world import PICTURE, ask, png


def small(uri: str) -> Any:
    return pil.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("size", [(6, 4), (3000, 100), (400, 1200)])
def test_a_thumbnail_is_small_and_whole(size: tuple[int, int]) -> None:
    found = small(thumbnail(Image(png(*size))))
    assert max(found.size) == min(SIDE, max(size))
    red, green, _ = found.getpixel((0, 0))
    assert red > 200 > 60 > green


def test_a_thumbnail_is_upright_and_on_white() -> None:
    picture = pil.new("RGBA", (40, 20), (0, 0, 0, 0))
    exif, buffer = picture.getexif(), io.BytesIO()
    exif[0x0112] = 6
    picture.save(buffer, "PNG", exif=exif)
    found = small(thumbnail(Image(buffer.getvalue())))
    assert found.size == (20, 40)
    assert min(found.getpixel((5, 5))) > 250
    assert thumbnail(Image(b"no picture")) == ""


def test_no_pictures_without_opt_in() -> None:
    entry = Entry(Visit(), 0.1, ask("x", PICTURE), {0: Guarded("fine", "pass", "answer")})
    assert "thumbnails" not in str(entry.rows(True, ()))
    assert "thumbnails" in str(entry.rows(False, (), True))
