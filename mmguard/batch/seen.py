"""Which rows are done: eight bytes for each, so that a million of them take eight megabytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRESH = 4_096


class Seen:
    """A set of row ids that only grows: sorted hashes, and a small set of those just added.

    Ids are hexadecimal hashes; the first sixteen digits stand for all.
    """

    def __init__(self, fresh: int = FRESH) -> None:
        self.most = fresh
        self.sorted: NDArray[np.uint64] = np.empty(0, np.uint64)
        self.fresh: set[int] = set()

    def add(self, row: str) -> None:
        if row in self:
            return
        self.fresh.add(int(row[:16], 16))
        if len(self.fresh) >= self.most:
            fresh = np.sort(np.fromiter(self.fresh, np.uint64, len(self.fresh)))
            self.sorted = np.insert(self.sorted, np.searchsorted(self.sorted, fresh), fresh)
            self.fresh.clear()

    def __contains__(self, row: str) -> bool:
        number = int(row[:16], 16)
        if number in self.fresh:
            return True
        place = int(np.searchsorted(self.sorted, np.uint64(number)))
        return place < len(self.sorted) and int(self.sorted[place]) == number

    def __len__(self) -> int:
        return len(self.sorted) + len(self.fresh)
