"""Who may come in: so many requests at once, so many more that wait, and a refusal for the rest.

All of it before a body is read: what there is no room for costs no memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Request as Call
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mmguard.server import blocks
from mmguard.server.failures import Refused, tell

if TYPE_CHECKING:
    from mmguard.server.sidecar import Sidecar


class Gate:
    """Places for `limit` requests. Of those that find none `queue` wait, `seconds` at the most.

    Who waits longest is next. `flying` counts the places taken, `waiting` the queue.
    """

    def __init__(self, limit: int, queue: int, seconds: float) -> None:
        self.limit, self.queue, self.seconds = limit, queue, seconds
        self.places = asyncio.Semaphore(limit)
        self.flying = self.waiting = 0

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """A place while this lasts. Raises `Refused`, which says when to come again."""
        if self.places.locked():
            await self.wait()
        else:
            await self.places.acquire()
        self.flying += 1
        try:
            yield
        finally:
            self.flying -= 1
            self.places.release()

    async def wait(self) -> None:
        if self.waiting >= self.queue:
            raise crowded("too many requests in flight", 1)
        self.waiting += 1
        try:
            async with asyncio.timeout(self.seconds):
                await self.places.acquire()
        except TimeoutError:
            told = f"no room within {self.seconds:g} s: too many requests in flight"
            raise crowded(told, math.ceil(self.seconds)) from None
        finally:
            self.waiting -= 1


def crowded(message: str, wait: int) -> Refused:
    return Refused(429, "rate_limit_error", message, code="overloaded", wait=str(wait))


class Porter:
    """ASGI: whoever posts something bears a key, if there are any, and has a place to the end."""

    def __init__(self, app: ASGIApp, sidecar: Sidecar) -> None:
        self.app, self.sidecar = app, sidecar

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.sidecar.posts.get(scope.get("path", ""))
        if route is None or scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        async with AsyncExitStack() as stack:
            app = self.app
            stack.callback(self.sidecar.memory.ended)
            try:
                # The operator's page asks for a key of its own.
                if not scope["path"].startswith("/ui/"):
                    self.sidecar.policy(Call(scope))
                await stack.enter_async_context(self.sidecar.gate.room())
            except Refused as exc:
                scope["route"], app = route, refusal(scope["path"], exc)
            await app(scope, receive, send)


def refusal(path: str, exc: Refused) -> ASGIApp:
    """The failure in the form of those who speak at this path."""
    status, body, headers = tell(exc)
    made: Any = body
    if path.startswith("/v1/messages"):
        made = blocks.error(status, body)
    elif path.startswith("/api/v1/text/"):
        made = {"code": status, "message": body["error"]["message"]}
    return JSONResponse(made, status, headers)
