"""uvicorn's protocol, with an end to waiting for the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

Base: Any = AutoHTTPProtocol


def heads_within(seconds: float) -> Any:
    """A protocol that hangs up on whoever sends no whole head in so many seconds."""

    class Prompt(Base):  # type: ignore[misc]  # uvicorn chooses its base when it is imported
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop()
            super().connection_lost(exc)

        def watch(self) -> None:
            """The clock runs while no request is there, or its head is not whole."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.stop()
            elif self.late is None:
                loop = asyncio.get_running_loop()
                self.late = loop.call_later(seconds, self.transport.close)

        def stop(self) -> None:
            if self.late:
                self.late.cancel()
                self.late = None

    return Prompt
