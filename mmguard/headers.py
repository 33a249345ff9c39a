"""What a picture's bytes promise, counted without decoding any of it."""

from __future__ import annotations

import re

# Where a GIF goes on: an extension, a frame, its end.
GIF_MARK = re.compile(rb"[!,;]")
# Markers of a JPEG that begin a segment, or end it all; restarts inside of scans are none.
JPEG_MARK = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")


def count_gif(data: bytes, most: int) -> int:
    """Frames of a GIF (GIF89a, section 20), up to `most`: Pillow would decode each on its way."""
    frames, place = 0, 13 + table_size(data[10])
    while frames < most and (mark := GIF_MARK.search(data, place)):
        place = mark.end()
        if mark[0] == b";":
            break
        if mark[0] == b"!":
            place = skip_blocks(data, place + 1)
            continue
        frames += 1
        packed = data[place + 8] if place + 8 < len(data) else 0
        place = skip_blocks(data, place + 10 + table_size(packed))
    return frames


def table_size(packed: int) -> int:
    return 3 << (packed & 7) + 1 if packed & 128 else 0


def skip_blocks(data: bytes, place: int) -> int:
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1


def count_scans(data: bytes, most: int) -> int:
    """Scans of a JPEG (ITU-T T.81, annex B), up to `most`; each is a pass over all pixels."""
    scans, place = 0, 2
    while scans < most and (mark := JPEG_MARK.search(data, place)):
        place = mark.end()
        if mark[0] == b"\xff\xd9":
            break
        scans += mark[0] == b"\xff\xda"
        place += int.from_bytes(data[place : place + 2], "big")
    return scans
