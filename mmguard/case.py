"""One request on its way through the guard: what steps and the flow know about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmguard.asks import Flow, Generate, generate, together
from mmguard.errors import StepError
from mmguard.types import Action, AnyRequest, Call, Coverage, Finding, Guarded, Reply, Request
from mmguard.verdict import strictest

if TYPE_CHECKING:
    from mmguard.policy import Check, Policy


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer comes from: the stage of its call, a model, and what that is asked."""

    stage: str
    model: str
    request: AnyRequest


# Is told `begin`, `check`, `checked` or `failed`, of which stage, and by which findings.
Watch = Callable[[str, str, Sequence[Finding]], None]
WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)
Made = Reply | Source | None
Step = Callable[["Case"], Flow[Made]]


@dataclass(slots=True)
class Case:
    """One request on its way through the guard, with all that was found so far.

    `text` is the answer as it stands, of which the first `released` characters have left.
    """

    request: Request
    policy: Policy
    streams: bool = False
    text: str = ""
    finish: str = "stop"
    released: int = 0
    decision: Action = "pass"
    closed: bool = False
    draft: Reply | None = None
    coverage: Coverage = field(default_factory=Coverage)
    trail: list[Finding] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    watch: Watch | None = field(default_factory=WATCH.get, repr=False, compare=False)

    def tell(self, event: str, stage: str, *findings: Finding) -> None:
        """Whoever watches learns of it; nothing depends on that."""
        if self.watch:
            self.watch(event, stage, findings)

    @property
    def running(self) -> tuple[Check, ...]:
        """The checks of an answer in the making."""
        return self.policy.running if self.policy.mode == "enforce" else ()

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

    def take(self, source: Source, reply: Reply) -> None:
        """An answer as a model made it."""
        self.text, self.finish = reply.text, reply.finish
        self.calls.append(Call(source.stage, source.model, reply))
        if source.stage == "draft":
            self.draft = reply

    def restart(self, name: str) -> None:
        """The draft again, before the next step, unless some of an answer has left."""
        self.tell("begin", name)
        self.closed = False
        if not self.released:
            self.text = self.draft.text if self.draft else ""

    def follow(self, step: Step) -> Flow[Made]:
        """What a step makes; under a deadline its answer too, which then cannot stream."""
        made = yield from step(self)
        if isinstance(made, Source) and self.policy.deadline:
            return (yield from self.ask(made.stage, made.model, made.request))
        return made

    def excuse(self, found: Finding) -> None:
        """Why a step has no answer."""
        self.trail.append(found)
        self.tell("failed", found.stage, found)

    def offer(self, reply: Reply | None) -> None:
        """An answer that a step has made."""
        if reply is None:
            raise StepError("the step answered nothing")
        if not reply.text.startswith(self.text[: self.released]):
            raise StepError("the step answered something else than what has left")
        self.text, self.finish = reply.text, reply.finish

    def examine(self) -> None:
        """Raises `StepError` for an answer that says nothing, or nothing but the draft."""
        if not self.text.strip():
            raise StepError("the step answered nothing")
        if self.draft and self.text.strip() == self.draft.text.strip():
            raise StepError("the step answered the draft again")

    def enforce(self, action: Action) -> Action:
        """What to do about it now; an audit only notes it."""
        self.decision = strictest((self.decision, action))
        return "pass" if self.policy.mode == "audit" else action

    def close(self, action: Action, step: str) -> Guarded:
        return Guarded(
            self.text,
            action,
            step,
            trail=tuple(self.trail),
            coverage=self.coverage,
            calls=tuple(self.calls),
            decision=self.decision,
            finish=self.finish,
            policy=self.policy.tag,
            closed=self.closed,
        )
