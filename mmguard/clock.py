"""Work that must end in time, in a thread or on an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Work(threading.Thread):
    """Work in a thread of its own; `gone` is set once nobody waits for it any more.

    A daemon: work that hangs must keep neither the caller nor the interpreter.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self.gone = threading.Event()


def abandoned() -> bool:
    """Whether nobody waits for what this thread does; a model asks at every token."""
    thread = threading.current_thread()
    return isinstance(thread, Work) and thread.gone.is_set()


def within(seconds: float | None, work: Callable[[], T], late: Exception) -> T:
    """The work's result; raises `late` when it takes longer."""
    if seconds is None:
        return work()
    results: list[T | Exception] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as exc:
            results.append(tame(exc))

    thread = Work(target, "mmguard-within")
    thread.start()
    thread.join(seconds)
    if not results:
        thread.gone.set()
        raise late
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def tame(error: BaseException) -> Exception:
    """An exit, or a panic of native code, of a thread as a failure of its work."""
    return error if isinstance(error, Exception) else RuntimeError(f"the work ended by {error!r}")


async def awithin(seconds: float | None, work: Awaitable[T], late: Exception) -> T:
    """`within` on an event loop: what is late is cancelled."""
    if seconds is None:
        return await work
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await work
    except TimeoutError:
        if clock.expired():
            raise late from None
        raise
