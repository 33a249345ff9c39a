"""A model and detectors whose verdicts are scripted, and whose work is done and counted.

What a verdict costs is paid: a detector scores the real text, a judge reads its prompt and
generates. Only what they found is replaced.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmguard.bundles import load_detector
from mmguard.detect.encoder import EncoderDetector
from mmguard.errors import InputError
from mmguard.models.hf import HFModel
from mmguard.prompts import JUDGE_OPTIONS, PLAN_OPTIONS, WORD_OPTIONS
from mmguard.rows import number_rows
from mmguard.types import AnyRequest, Detector, Finding, Model, Reply, Sample, Text, Usage

if TYPE_CHECKING:
    from mmguard.models.options import Plan


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a draft, a description and a mended answer; forced, or at most."""

    draft: int = 260
    caption: int = 128
    repair: int = 154


def measure_lengths(path: Path, caption: int) -> Lengths:
    """The mean lengths of `harmful` and `safe` answers to the same requests, a pair a row.

    Counted by the encoder's tokenizer, of about a token a word. Raises `InputError`.
    """
    encoder = load_detector("response-harm")
    assert isinstance(encoder, EncoderDetector)
    encode, pairs = encoder.parts.tokenizer.encode, read_pairs(path)
    means = [
        round(statistics.mean(len(encode(text, add_special_tokens=False).ids) for text in side))
        for side in zip(*pairs, strict=True)
    ]
    return Lengths(means[0], caption, means[1])


def read_pairs(path: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for number, row in number_rows(path):
        if isinstance(row, InputError):
            raise row
        harmful, safe = row.get("harmful"), row.get("safe")
        if not (isinstance(harmful, str) and isinstance(safe, str)):
            raise InputError(f"{path}:{number}: a row needs the texts `harmful` and `safe`")
        found.append((harmful, safe))
    if not found:
        raise InputError(f"{path} has no rows: give pairs of a harmful and a safe answer")
    return found


@dataclass(frozen=True, slots=True)
class Cost:
    """What answers took. `prompt` counts tokens of prompts, `read` those not known before.

    `cpu_s` are seconds of this process on a processor: what a busy machine disturbs least.
    """

    prompt: float = 0.0
    read: float = 0.0
    generated: float = 0.0
    calls: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0
    detector_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def __mul__(self, share: float) -> Cost:
        return Cost(*(share * part for part in self.parts()))

    def parts(self) -> list[float]:
        return [getattr(self, each.name) for each in fields(self)]


def count(usage: Usage) -> Cost:
    """The tokens of one call."""
    return Cost(usage.prompt, usage.prompt - usage.cached, usage.completion, 1)


class Metered(HFModel):
    """An `HFModel` that notes what each call read and wrote, those of streams closed early too."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.costs: list[Cost] = []

    def answer(self, requests: Sequence[AnyRequest], how: Plan, *more: Any) -> list[Reply]:
        replies = super().answer(requests, how, *more)
        self.costs += [count(reply.usage) for reply in replies]
        return replies


class Script:
    """The verdicts: which texts count as harmful. `share` of a marked draft is enough."""

    def __init__(self, share: float) -> None:
        self.share, self.marked = share, list[str]()

    def enough(self, draft: str) -> str:
        """The beginning of a draft that is enough to flag it."""
        return draft[: max(1, round(self.share * len(draft)))]

    def flags(self, text: str) -> bool:
        """Whether this is a marked draft, or enough of its beginning."""
        return any(
            draft.startswith(text) and len(text) >= len(self.enough(draft)) for draft in self.marked
        )

    def mentions(self, text: str) -> bool:
        """Whether a judge's prompt holds enough of a marked draft."""
        return any(self.enough(draft) in text for draft in self.marked)


class Overruled:
    """A detector that does its work and is then told what it found."""

    def __init__(self, detector: Detector, script: Script) -> None:
        self.detector, self.script = detector, script
        self.name, self.thresholds = detector.name, detector.thresholds
        self.seconds = 0.0

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        start = time.perf_counter()
        found = self.detector.score(samples)
        self.seconds += time.perf_counter() - start
        return [
            replace(each, score=float(self.script.flags(sample.reply or "")), categories={})
            for each, sample in zip(found, samples, strict=True)
        ]

    def fresh(self) -> None:
        self.seconds = 0.0
        if isinstance(self.detector, EncoderDetector):
            self.detector.cache.kept.clear()


class Target:
    """The model under guard: sets each stage's length, and a judge's verdict."""

    name = "target"

    def __init__(self, inner: Model, counted: Metered, script: Script, lengths: Lengths) -> None:
        self.inner, self.counted, self.script, self.lengths = inner, counted, script, lengths
        self.asked: AnyRequest | None = None
        self.stages: list[str] = []

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        return [self.answer(request) for request in requests]

    def answer(self, request: AnyRequest) -> Reply:
        [reply] = self.inner.generate([self.limit(request)])
        if self.stages[-1] != "judge":
            return reply
        word = "yes" if self.script.mentions(spoken(request)) else "no"
        return replace(reply, text=word, first={word: 1.0})

    def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
        yield from self.inner.stream(self.limit(request))

    def limit(self, request: AnyRequest) -> AnyRequest:
        """The request with the length of its stage, which is noted."""
        stage, options = self.stage(request), dict(request.options)
        self.stages.append(stage)
        asked = int(options.get("max_tokens") or self.lengths.draft)
        limits = asdict(self.lengths) | {"plan": asked, "judge": judge_length(options)}
        return replace(request, options={**options, "max_tokens": min(asked, limits[stage])})

    def stage(self, request: AnyRequest) -> str:
        options = dict(request.options)
        if options in (JUDGE_OPTIONS, WORD_OPTIONS):
            return "judge"
        if request == self.asked:
            return "draft"
        if request.images:
            return "caption"
        return "plan" if options == PLAN_OPTIONS else "repair"


def spoken(request: AnyRequest) -> str:
    return "\n".join(
        part.text for turn in request.messages for part in turn.parts if isinstance(part, Text)
    )


def judge_length(options: Mapping[str, Any]) -> int:
    """A word and the end of it; asked for chances, a model is read at its first token."""
    return 1 if options.get("logprobs") else 2
