"""Guard LLMs by name and YAML: Llama Guard, Qwen3Guard, ShieldGemma, WildGuard, Granite Guardian.

In this process from a folder or the hub, or, with `url`, behind an OpenAI-compatible server.
The score is p(unsafe) from the probabilities of the guard's own labels where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from mmguard.detect.families import FAMILIES, Family
from mmguard.detect.questions import Question, Writer
from mmguard.detect.readings import Verdict
from mmguard.detect.settings import WORDS, Endpoint, Weights, parse_settings, read_settings
from mmguard.errors import MmguardError, UnknownName
from mmguard.types import Finding, Sample

if TYPE_CHECKING:
    from mmguard.bundles import Bundle


class Guard(Weights):
    """The settings of a bundle of kind `guard`.

    With `url`, `model` is the name that the server knows.
    `controversial` says what Qwen3Guard's middle label counts as. `arguments` add to the chat
    template's own. `prompt`, with the blanks {query} and {answer}, is for a family without
    chat template. `floor` is the least probability that the labels must have together.
    """

    family: str
    url: str | None = Field(default=None, pattern="^https?://")
    key_env: str = ""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    logprobs: bool = True
    batch_size: Annotated[int, Field(ge=1)] = 8
    controversial: Literal["unsafe", "safe"] = "unsafe"
    arguments: dict[str, Any] = Field(default_factory=dict)
    prompt: str = ""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1

    @field_validator("family")
    @classmethod
    def know_family(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(str(UnknownName("family", family, FAMILIES)))
        return family

    @model_validator(mode="after")
    def agree(self) -> Guard:
        form = FAMILIES[self.family].form
        blanks = "{query}" in self.prompt and "{answer}" in self.prompt
        if form == "prompt" and not blanks:
            raise ValueError(
                f"{self.family} has no chat template: give prompt, from its model card, with"
                " {query} and {answer} where the request and the answer stand"
            )
        if form == "template" and self.prompt:
            raise ValueError(f"{self.family} has its own chat template: remove prompt")
        return self


class Asker(Protocol):
    """Whatever puts questions to a guard."""

    def ask(self, questions: Sequence[Question]) -> Sequence[Verdict | MmguardError]: ...
    def close(self) -> None: ...


class GuardDetector:
    """p(unsafe) of a request, or of an answer given its request, as a guard LLM sees it.

    A finding counts the characters and pictures that the guard was given. A row that fails
    is a finding with an error; where all rows fail, the first failure is raised.
    """

    def __init__(
        self, name: str, thresholds: Mapping[str, float], writer: Writer, asker: Asker
    ) -> None:
        self.name, self.thresholds = name, thresholds
        self.writer, self.asker = writer, asker
        self.sees = writer.family.images > 0

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        asked = [self.writer.write(sample) for sample in samples]
        answers = iter(self.asker.ask([question for row in asked for question in row]))
        rows = [[next(answers) for _ in row] for row in asked]
        failures = [next(failed(row), None) for row in rows]
        if failures and all(failures) and failures[0] is not None:
            raise failures[0]
        return [
            self.find(*row, failure)
            for row, failure in zip(zip(samples, asked, rows, strict=True), failures, strict=True)
        ]

    def close(self) -> None:
        """Close the connections to a guard behind a server."""
        self.asker.close()

    def find(
        self,
        sample: Sample,
        asked: Sequence[Question],
        answers: Sequence[Verdict | MmguardError],
        failure: MmguardError | None,
    ) -> Finding:
        seen = asked[0].request
        chars = sum(len(message.text) for message in seen.messages) if seen.messages else 0
        if self.writer.family.form != "template":
            chars = len(sample.request.query) + len(sample.reply or "")
        blank = Finding(self.name, 1.0, images=len(seen.images), chars=min(chars, sample.chars))
        if failure is not None:
            return replace(blank, label="error", error=str(failure)[:300])
        verdicts = [answer for answer in answers if isinstance(answer, Verdict)]
        return conclude(blank, asked, verdicts)


def failed(answers: Sequence[Verdict | MmguardError]) -> Iterator[MmguardError]:
    return (answer for answer in answers if isinstance(answer, MmguardError))


def conclude(blank: Finding, asked: Sequence[Question], verdicts: Sequence[Verdict]) -> Finding:
    """One finding of a sample's verdicts: the worst counts."""
    score = max(verdict.score for verdict in verdicts)
    categories = {
        question.category: verdict.score
        for question, verdict in zip(asked, verdicts, strict=True)
        if question.category
    }
    for verdict in verdicts:
        categories |= dict.fromkeys(verdict.categories, verdict.score)
    return replace(
        blank,
        score=score,
        label="harmful" if score >= 0.5 else "safe",
        categories=categories,
        reason=verdicts[0].reason,
    )


def load(bundle: Bundle) -> GuardDetector:
    """The guard that a bundle of kind `guard` names."""
    settings = read_settings(Guard, bundle)
    return make_guard(bundle.name, bundle.thresholds or WORDS, settings)


def name_guard(name: str, family: str, model: str) -> GuardDetector:
    """A well-known guard, in this process, with default settings."""
    return make_guard(name, WORDS, parse_settings(Guard, {"family": family, "model": model}, name))


def make_guard(name: str, thresholds: Mapping[str, float], settings: Guard) -> GuardDetector:
    family = FAMILIES[settings.family]
    if "Controversial" in family.labels and settings.controversial == "safe":
        family = replace(family, labels={**family.labels, "Controversial": 0.0})
    writer = Writer(family, settings.arguments, settings.prompt)
    asker = open_asker(family, settings, min(thresholds.values(), default=0.3))
    return GuardDetector(name, thresholds, writer, asker)


def open_asker(family: Family, settings: Guard, listing: float) -> Asker:
    """`listing` is the least score whose categories matter to anybody."""
    if settings.url is None:
        from mmguard.detect.resident import load_resident

        return load_resident(settings, family, listing)
    from mmguard.detect.remote import Remote
    from mmguard.models.openai import OpenAIModel

    place = Endpoint(url=settings.url, key_env=settings.key_env, timeout_s=settings.timeout_s)
    model = OpenAIModel(place.url, settings.model, key=place.key, timeout=place.timeout_s)
    return Remote(model, family, settings.floor, settings.logprobs)
