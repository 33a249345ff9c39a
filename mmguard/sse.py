"""Server-sent events (WHATWG HTML, 9.2): bytes in, whole events out, however they were cut.

Pure and incremental. An event keeps the very bytes it came as, so that it can go on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE = re.compile(rb"\r\n|\n|\r(?!\Z)")
BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its `data` lines joined by newlines, and the bytes that it came as."""

    data: bytes
    raw: bytes


class Parser:
    """The events of one stream. An event that the stream's end cuts short is none."""

    def __init__(self) -> None:
        self.rest, self.raw, self.data = b"", b"", list[bytes]()
        self.started = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete, comments and events without data left out."""
        self.rest += data
        if not self.started:
            if BOM.startswith(self.rest) and len(self.rest) < len(BOM):
                return
            self.started, self.rest = True, self.rest.removeprefix(BOM)
        place = 0
        for end in LINE.finditer(self.rest):
            line, place = self.rest[place : end.start()], end.end()
            self.raw += line + end[0]
            if not line and (event := self.close()):
                yield event
            elif line:
                self.take(line)
        self.rest = self.rest[place:]

    def take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self.data.append(value.removeprefix(b" "))

    def close(self) -> Event | None:
        """The event that an empty line ends, if it has data."""
        event = Event(b"\n".join(self.data), self.raw) if self.data else None
        self.data, self.raw = [], b""
        return event


def frame(data: bytes) -> bytes:
    """Data of one line as an event."""
    return b"data: " + data + b"\n\n"
