"""Who may work next, where all would work at once."""

from __future__ import annotations

from collections import deque
from threading import Lock


class Turns:
    """A context that `count` threads may be in; the others enter in the order they came.

    Unlike a `threading.Semaphore`, which whoever has just left may enter again at once.
    """

    def __init__(self, count: int) -> None:
        self.free, self.lock = count, Lock()
        self.waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        with self.lock:
            if self.free:
                self.free -= 1
                return
            turn = Lock()
            turn.acquire()
            self.waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:
            self.give_up(turn)
            raise

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.pass_on()

    def pass_on(self) -> None:
        if self.waiting:
            self.waiting.popleft().release()
        else:
            self.free += 1

    def give_up(self, turn: Lock) -> None:
        """Interrupted while it waited; its turn may have come all the same."""
        with self.lock:
            if turn in self.waiting:
                self.waiting.remove(turn)
            else:
                self.pass_on()
