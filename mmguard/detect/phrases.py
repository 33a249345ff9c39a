"""A small curated list of phrases: a gate that needs no weights and never surprises.

It knows wording and nothing of meaning: whoever avoids its phrases passes. Texts are
compared in one case, without accents of compatibility, zero-width marks or odd spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmguard.errors import BundleError
from mmguard.types import Finding, Sample

if TYPE_CHECKING:
    from mmguard.bundles import Bundle

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
SPACES = re.compile(r"\s+")


class Entry(BaseModel):
    """Phrases of one category, in requests or in answers, with their weight as a score.

    A phrase may hold `*` for any one to three words. `unless` cancels a hit: it names words
    that, anywhere in the text, make the phrase harmless.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    category: str
    where: list[str] = ["request", "answer"]
    weight: float = Field(ge=0, le=1)
    phrases: list[str] = Field(min_length=1)
    unless: list[str] = []


@dataclass(frozen=True, slots=True)
class Rule:
    """An entry, compiled."""

    entry: Entry
    pattern: re.Pattern[str]
    unless: re.Pattern[str] | None

    def hits(self, text: str) -> bool:
        if self.pattern.search(text) is None:
            return False
        return self.unless is None or self.unless.search(text) is None


def normalise(text: str) -> str:
    """The text as the phrases are written: folded, visible, single-spaced."""
    folded = unicodedata.normalize("NFKC", INVISIBLE.sub("", text)).casefold()
    return SPACES.sub(" ", folded.replace("\u2019", "'"))


def compile_phrases(phrases: Sequence[str]) -> re.Pattern[str]:
    """One pattern for them all, at word boundaries."""
    gap = r"(?:\S+ ){0,2}\S+"
    parts = [
        gap.join(re.escape(piece) for piece in normalise(phrase).split("*")) for phrase in phrases
    ]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)")


def compile_entry(entry: Entry) -> Rule:
    unless = compile_phrases(entry.unless) if entry.unless else None
    return Rule(entry, compile_phrases(entry.phrases), unless)


class PhraseDetector:
    """The highest weight among the phrases that a text holds."""

    sees = False
    # Characters that take about as long as a thread takes to start.
    quick = 4096

    def __init__(self, name: str, thresholds: Mapping[str, float], rules: Sequence[Rule]) -> None:
        self.name, self.thresholds = name, thresholds
        self.sides = {
            side: [rule for rule in rules if side in rule.entry.where]
            for side in ("request", "answer")
        }

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        return [self.find(sample) for sample in samples]

    def find(self, sample: Sample) -> Finding:
        side, given = "answer", sample.reply
        if given is None:
            side, given = "request", sample.request.text
        text = normalise(given)
        hits = [rule.entry for rule in self.sides[side] if rule.hits(text)]
        categories: dict[str, float] = {}
        for hit in hits:
            categories[hit.category] = max(hit.weight, categories.get(hit.category, 0.0))
        score = max(categories.values(), default=0.0)
        return Finding(
            self.name,
            score,
            "harmful" if hits else "safe",
            categories,
            reason=", ".join(sorted(hit.id for hit in hits)),
            chars=len(given),
        )


def load(bundle: Bundle) -> PhraseDetector:
    """The detector of a bundle whose `phrases.yaml` is a list of entries."""
    try:
        listed: Any = yaml.safe_load(bundle.read("phrases.yaml"))
        rules = [compile_entry(Entry.model_validate(entry)) for entry in listed]
    except (ValidationError, yaml.YAMLError, TypeError) as exc:
        raise BundleError(f"bundle {bundle.name!r}: phrases.yaml: {exc}") from exc
    return PhraseDetector(bundle.name, bundle.thresholds, rules)
