"""From text to windows of tokens: pure, and the same in training and in use.

A window holds a request and a stretch of its answer. Long requests keep both ends; a long
answer is spread over overlapping windows that together hold every token of it. Windows
start at fixed places, so those that are full stay as they are while an answer grows.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Tag characters spell out ASCII that no reader sees; they are read as what they spell.
TAGS = {0xE0000 + code: code for code in range(0x20, 0x7F)}
HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
# WordPiece gives up on words of more than 100 characters.
LONG = re.compile(r"\S{80}")
SPACED = re.compile(r"(?<!\w)\w(?:[ ._*-]\w){3,}(?!\w)")
ENCODED = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids, and for each whether it belongs to the answer (1) or not (0).

    `first` says that the text begins here.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    first: bool = True


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in tokens: of a window, of the request in it, of what neighbours share."""

    window: int = 256
    request: int = 64
    overlap: int = 64
    start: int = 101
    end: int = 102

    def pair(self, request: Sequence[int], answer: Sequence[int]) -> list[Window]:
        """The windows of an answer; each begins with the request."""
        head = (self.start, *ends(request, self.request), self.end)
        room = self.window - len(head) - 1
        return [
            Window((*head, *piece, self.end), (0,) * len(head) + (1,) * (len(piece) + 1), not i)
            for i, piece in enumerate(spread(answer, room, room - self.overlap))
        ]

    def alone(self, request: Sequence[int]) -> list[Window]:
        """The windows of a request that has no answer yet."""
        room = self.window - 2
        return [
            Window((self.start, *piece, self.end), (0,) * (len(piece) + 2), not i)
            for i, piece in enumerate(spread(request, room, room - self.overlap))
        ]


def ends(ids: Sequence[int], limit: int) -> Sequence[int]:
    """The first third and the last two thirds of what is too long: the ask is mostly last."""
    if len(ids) <= limit:
        return ids
    first = limit // 3
    return [*ids[:first], *ids[len(ids) - (limit - first) :]]


def spread(ids: Sequence[int], room: int, stride: int) -> list[tuple[int, ...]]:
    """Pieces of at most `room` tokens, `stride` apart, that hold every token."""
    last = max(0, len(ids) - room)
    return [tuple(ids[start : start + room]) for start in range(0, last + stride, stride)]


def clean(text: str) -> str:
    """The text as a reader would see it: one form, nothing hidden, no lone surrogates."""
    text = text.encode("utf-8", "replace").decode("utf-8").translate(TAGS)
    text = HIDDEN.sub("", unicodedata.normalize("NFKC", text))
    return LONG.sub(r"\g<0> ", SPACED.sub(close, text))


def close(found: re.Match[str]) -> str:
    return found[0][::2]


def decoded(text: str) -> str:
    """What base64 runs of the text say, if they say anything readable."""
    found = (unwrap(run) for run in ENCODED.findall(text))
    return "\n".join(said for said in found if said)


def unwrap(run: str) -> str:
    body = run.rstrip("=")
    try:
        said = base64.b64decode(body + "=" * (-len(body) % 4)).decode("utf-8")
    except (binascii.Error, ValueError):
        return ""
    readable = sum(char.isprintable() or char in "\n\t" for char in said)
    return said if readable == len(said) and " " in said else ""
