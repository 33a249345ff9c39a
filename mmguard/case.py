"""One request on its way through the guard: what steps and the flow know about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmguard.asks import Flow, Generate, generate, together
from mmguard.types import Action, AnyRequest, Call, Coverage, Finding, Guarded, Reply, Request
from mmguard.verdict import strictest

if TYPE_CHECKING:
    from mmguard.policy import Policy


@dataclass(slots=True)
class Case:
    """One request on its way through the guard, with all that was found so far."""

    request: Request
    policy: Policy
    text: str = ""
    checked: int = 0
    released: int = 0
    decision: Action = "pass"
    closed: bool = False
    draft: Reply | None = None
    coverage: Coverage = field(default_factory=Coverage)
    trail: list[Finding] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def ask(self, stage: str, model: str, request: AnyRequest) -> Flow[Reply]:
        """A model's reply, kept among the calls under this stage."""
        reply = yield from generate(model, request)
        self.calls.append(Call(stage, model, reply))
        return reply

    def ask_all(self, stage: str, model: str, requests: Sequence[AnyRequest]) -> Flow[list[Reply]]:
        """A model's replies to several requests at once; raises what the first failed by."""
        asks = tuple(Generate(model, request) for request in requests)
        replies: list[Reply] = []
        for answer in (yield from together(asks)):
            if not isinstance(answer, Reply):
                raise answer if isinstance(answer, Exception) else TypeError(type(answer))
            self.calls.append(Call(stage, model, answer))
            replies.append(answer)
        return replies

    def take(self, reply: Reply) -> None:
        self.draft, self.text = reply, reply.text
        self.calls.append(Call("draft", "target", reply))

    def enforce(self, action: Action) -> Action:
        """What to do about it now; an audit only notes it."""
        self.decision = strictest((self.decision, action))
        return "pass" if self.policy.mode == "audit" else action

    def close(self, text: str, action: Action, step: str, finish: str) -> Guarded:
        return Guarded(
            text,
            action,
            step,
            trail=tuple(self.trail),
            coverage=self.coverage,
            calls=tuple(self.calls),
            decision=self.decision,
            finish=finish,
            policy=self.policy.tag,
            closed=self.closed,
        )
