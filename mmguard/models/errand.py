"""Calls of a server that may be left at any time, and then keep no connection.

httpx closes connections, and gives them back, behind anyio's shields, and asyncio's own
cancellation passes through these: a call that is cancelled just then holds its connection for
ever. So a call has a task of its own, which is cancelled as anyio does it. Between connecting
and the head of the request httpcore would lose its socket either way: there the call goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Extensions = dict[str, Any]
# The loop itself would forget a task that nobody waits for.
UNDERWAY: set[asyncio.Task[Any]] = set()


class Errand(Generic[T]):
    """One call: `work` makes it by httpx, with the extensions that it is given."""

    def __init__(self, work: Callable[[Extensions], Awaitable[T]]) -> None:
        from anyio import CancelScope

        self.scope, self.connecting, self.gone = CancelScope(), False, False
        self.task = asyncio.ensure_future(self.run(work))
        UNDERWAY.add(self.task)
        self.task.add_done_callback(settle)

    async def run(self, work: Callable[[Extensions], Awaitable[T]]) -> T:
        with self.scope:
            return await work({"trace": self.trace})
        raise asyncio.CancelledError

    async def result(self) -> T:
        """What the call brings; whoever is cancelled here leaves it."""
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Nobody waits any more."""
        self.gone = True
        if not self.connecting and not self.task.done():
            self.scope.cancel()

    async def trace(self, name: str, info: Any) -> None:
        """httpcore tells each step of a call."""
        if name.endswith(("connect_tcp.started", "start_tls.started")):
            self.connecting = True
        elif name.endswith(("send_request_headers.started", ".failed")):
            self.connecting = False
            if self.gone:
                self.leave()


def settle(task: asyncio.Task[Any]) -> None:
    """The task is over; how, may be nobody's business any more."""
    UNDERWAY.discard(task)
    if not task.cancelled():
        task.exception()
