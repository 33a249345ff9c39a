"""What one guarded choice sends: frames as they came, or chunks of its own making."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from mmguard import drive, guard
from mmguard.policy import Policy
from mmguard.server import wire
from mmguard.server.exchange import Branch, Feed
from mmguard.server.failures import demand
from mmguard.server.spans import watched
from mmguard.sse import frame
from mmguard.types import Guarded


class Speech:
    """One choice of a stream, from its flow to bytes; `guarded` is there at its end."""

    def __init__(self, branch: Branch, feed: Feed, in_content: bool) -> None:
        self.branch, self.feed, self.in_content = branch, feed, in_content
        self.guarded: Guarded | None = None
        self.begun = False

    async def run(self, policy: Policy) -> AsyncIterator[bytes]:
        """Everything that this choice sends. Raises what the upstream or the guard failed by."""
        held = ""
        flow = watched(guard(self.branch.exchange.request, policy, stream=True), self.branch.index)
        async with aclosing(drive.astream(flow, self.branch)) as items:
            async for item in items:
                if isinstance(item, Guarded):
                    self.guarded = item
                    demand(item)
                    yield self.end(item, held)
                    return
                if held:
                    yield self.say(content=held)
                frames, held = self.branch.ledger.take(item), ""
                if frames is None:
                    # Whether this is an answer or a refusal, the next item tells.
                    held = item
                elif frames:
                    self.begun = True
                    yield frames

    def end(self, guarded: Guarded, held: str) -> bytes:
        """The last of it, and why it ended."""
        if guarded.action == "pass":
            return self.branch.ledger.flush()
        if guarded.action == "repair":
            said = self.say(content=held) if held else self.owed()
            return said + self.chunk({}, wire.finish_of(guarded))
        said = self.owed() + self.say(refusal=held)
        if self.in_content:
            said += self.say(content=held)
        return said + self.chunk({}, "content_filter")

    def say(self, **fields: str) -> bytes:
        """A delta of our own, after what is still owed of a frame."""
        return self.owed() + self.chunk(fields)

    def owed(self) -> bytes:
        ledger = self.branch.ledger
        owed, ledger.sent = ledger.owed, ledger.gone
        return self.chunk({"content": owed}) if owed else b""

    def chunk(self, delta: wire.Json, finish: str | None = None) -> bytes:
        if not self.begun:
            self.begun, delta = True, {"role": "assistant", **delta}
        form = self.branch.exchange.form
        choice = {"index": self.branch.index, **form.write(delta), "finish_reason": finish}
        shared = {k: v for k, v in self.feed.first.items() if k not in ("choices", "usage")}
        return frame(wire.dump({**self.feed.blank, **shared, "choices": [choice]}))
