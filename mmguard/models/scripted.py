"""Public test doubles: a model and a detector that do what a function says.

They let a policy, a flow or an application be tested without weights. Scripts may raise,
and may answer anything, which is how failures are rehearsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from mmguard.types import AnyRequest, Finding, Reply, Sample, Text, Usage

Script = Callable[[AnyRequest], str | Reply]


def echo(request: AnyRequest) -> str:
    """The words of the last message, and how many pictures came with it."""
    last = request.messages[-1]
    words = " ".join(part.text for part in last.parts if isinstance(part, Text))
    return f"{words} [{len(request.images)} pictures]"


class ScriptedModel:
    """Answers each request as `script` says; `seen` keeps every request it got.

    A stream comes in pieces of `piece` characters.
    """

    def __init__(self, script: Script = echo, *, name: str = "scripted", piece: int = 7) -> None:
        self.script, self.name, self.piece = script, name, piece
        self.seen: list[AnyRequest] = []

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        return [self.answer(request) for request in requests]

    def answer(self, request: AnyRequest) -> Reply:
        self.seen.append(request)
        made = self.script(request)
        if isinstance(made, Reply):
            return made
        return Reply(made, usage=Usage(len(request.messages), len(made.split())))

    def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
        reply = self.answer(request)
        for start in range(0, len(reply.text), self.piece):
            yield reply.text[start : start + self.piece]
        yield reply


class ScriptedDetector:
    """Scores each sample as `script` says; looks at every character and no picture."""

    def __init__(
        self,
        script: Callable[[Sample], float | Finding],
        *,
        name: str = "scripted",
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.script, self.name = script, name
        self.thresholds = thresholds or {"low": 0.75, "medium": 0.5, "high": 0.25}
        self.seen: list[Sample] = []

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        return [self.find(sample) for sample in samples]

    def find(self, sample: Sample) -> Finding:
        self.seen.append(sample)
        made = self.script(sample)
        return made if isinstance(made, Finding) else Finding(self.name, made, chars=sample.chars)
