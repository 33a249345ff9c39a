"""Small copies of pictures, for whoever looks at a decision later."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from mmguard.errors import ImageError
from mmguard.media import open_header
from mmguard.types import Image

# Pixels of the longer side, and how many pictures of a request have a copy.
SIDE, MOST = 256, 4


def shrink(images: Sequence[Image]) -> list[str]:
    """A data URI of a small JPEG for each of the first pictures, empty for what is none."""
    return [thumbnail(image) for image in images[:MOST]]


def thumbnail(image: Image) -> str:
    """The picture upright, on white, its longer side at most `SIDE` pixels."""
    from PIL import Image as pil, ImageOps

    try:
        picture = open_header(image.data, "the picture")
        # A JPEG is then decoded at a fraction of its size.
        picture.draft("RGB", (SIDE, SIDE))
        picture.thumbnail((SIDE, SIDE))
        picture = ImageOps.exif_transpose(picture).convert("RGBA")
    except (ImageError, OSError, ValueError, SyntaxError):
        return ""
    white, buffer = pil.new("RGBA", picture.size, "white"), io.BytesIO()
    pil.alpha_composite(white, picture).convert("RGB").save(buffer, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
