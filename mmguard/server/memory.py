"""Memory that large bodies leave behind goes back to the system once nothing is under way.

glibc keeps what was freed for the next large body; that is well under load, and looks like a
leak after it. To give it back stops the process for a moment, so that it waits for a pause.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmguard.server.gate import Gate

# Bytes of a body that is large, and seconds of a pause.
LARGE, PAUSE = 2**20, 1.0
Trim = Callable[[int], Any]


def find_trim() -> Trim | None:
    """glibc's `malloc_trim(3)`, where there is one."""
    try:
        found: Trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found


class Memory:
    """Notices large bodies, and tidies up after them."""

    def __init__(self, gate: Gate, trim: Trim | None = None) -> None:
        self.gate, self.trim = gate, trim or find_trim()
        self.dirty = False
        self.timer: asyncio.TimerHandle | None = None

    def took(self, size: int) -> None:
        """A body of so many bytes was read."""
        self.dirty = self.dirty or size >= LARGE

    def ended(self) -> None:
        """A request is over."""
        if self.dirty and self.trim and not self.gate.flying and self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(PAUSE, self.tidy)

    def tidy(self) -> None:
        self.timer = None
        if self.trim and not self.gate.flying:
            self.dirty = False
            asyncio.get_running_loop().run_in_executor(None, self.trim, 0)
