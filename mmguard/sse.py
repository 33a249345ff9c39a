"""Server-sent events (WHATWG HTML, 9.2): bytes in, whole events out, however they were cut.

Pure and incremental. An event keeps the very bytes it came as, so that it can go on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE = re.compile(rb"\r\n?|\n")
BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its `data` lines joined by newlines, and the bytes that it came as."""

    data: bytes
    raw: bytes


class Parser:
    """The events of one stream. An event that the stream's end cuts short is none.

    Each byte is looked at once: pieces of a line or an event are put together at its end.
    """

    def __init__(self) -> None:
        self.line, self.raw, self.data = list[bytes](), list[bytes](), list[bytes]()
        self.head, self.started, self.returned = b"", False, False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete, comments and events without data left out."""
        if not (data := self.begin(data)):
            return
        # A line feed after a carriage return belongs to the end of a line that was taken.
        place = 1 if self.returned and data.startswith(b"\n") else 0
        self.raw.append(data[:place])
        for end in LINE.finditer(data, place):
            self.raw.append(data[place : end.end()])
            line = b"".join([*self.line, data[place : end.start()]])
            place = end.end()
            self.line.clear()
            if line:
                self.take(line)
            elif event := self.close():
                yield event
        self.line.append(data[place:])
        self.raw.append(data[place:])
        self.returned = data.endswith(b"\r")

    def begin(self, data: bytes) -> bytes:
        """The bytes, once it is clear that no byte order mark leads them."""
        if self.started:
            return data
        self.head += data
        if len(self.head) < len(BOM) and BOM.startswith(self.head):
            return b""
        self.started = True
        return self.head.removeprefix(BOM)

    def take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self.data.append(value.removeprefix(b" "))

    def close(self) -> Event | None:
        """The event that an empty line ends, if it has data."""
        event = Event(b"\n".join(self.data), b"".join(self.raw)) if self.data else None
        self.data, self.raw = [], []
        return event


def frame(data: bytes) -> bytes:
    """Data of one line as an event."""
    return b"data: " + data + b"\n\n"
