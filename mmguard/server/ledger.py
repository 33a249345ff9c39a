"""What came from upstream for one choice, until the guard says how much of it may go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmguard.server.wire import Spoken


@dataclass(frozen=True, slots=True)
class Frame:
    """One chunk as bytes, and where in the choice's text what it says begins and ends."""

    raw: bytes
    start: int
    end: int


class Ledger:
    """Frames in order, and the text that they say together.

    A frame goes on when all that it says has been let out: what passes is, byte for byte,
    what came. What was let out of a frame that will not follow whole is `owed` as text.
    """

    def __init__(self) -> None:
        self.spoken, self.frames = Spoken(), deque[Frame]()
        self.text, self.gone, self.sent = "", 0, 0

    def add(self, raw: bytes, delta: Mapping[str, Any]) -> str:
        """What this chunk adds to the text."""
        piece = self.spoken.add(delta)
        start = len(self.text) + self.spoken.lead
        self.text += piece
        self.frames.append(Frame(raw, start, len(self.text)))
        return piece

    def take(self, piece: str) -> bytes | None:
        """The frames that go on with this piece; `None` if it is not what came."""
        if not self.text.startswith(piece, self.gone):
            return None
        self.gone += len(piece)
        return self.flush()

    def flush(self) -> bytes:
        """The frames whose whole text was let out."""
        ready = []
        while self.frames and self.frames[0].end <= self.gone:
            frame = self.frames.popleft()
            self.sent = frame.end
            ready.append(frame.raw)
        return b"".join(ready)

    @property
    def owed(self) -> str:
        """Text that was let out while its frame was kept."""
        start = self.frames[0].start if self.frames else self.sent
        return self.text[max(start, self.sent) : self.gone]
