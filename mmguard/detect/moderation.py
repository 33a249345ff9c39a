"""OpenAI's moderation endpoint, or a server that speaks it: words and pictures.

Speaks `POST {url}/moderations`. The score is the highest of `category_scores`, which are not
calibrated probabilities: measure before you trust a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from mmguard.detect.settings import WORDS, Endpoint, parse_settings, read_settings
from mmguard.errors import DetectorError, MmguardError
from mmguard.models.openai import OpenAIModel, load as load_json, refused, write_part
from mmguard.types import Finding, Image, Sample, Text

if TYPE_CHECKING:
    from mmguard.bundles import Bundle

THREADS = 16
# OpenAI's categories; one that is not here keeps its name.
CATEGORIES: Mapping[str, str] = {
    "harassment/threatening": "harassment",
    "hate/threatening": "hate",
    "illicit": "non_violent_crimes",
    "illicit/violent": "violent_crimes",
    "self-harm": "self_harm",
    "self-harm/instructions": "self_harm",
    "self-harm/intent": "self_harm",
    "sexual": "sexual_content",
    "sexual/minors": "child_exploitation",
    "violence": "violent_crimes",
    "violence/graphic": "violent_crimes",
}


class Moderation(Endpoint):
    """The settings of a bundle of kind `moderation`.

    With `input: answer` an answer is judged by its words alone, with `pair` together with the
    request's words and pictures. A request is always judged with its pictures.
    """

    url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    model: str = "omni-moderation-latest"
    input: Literal["answer", "pair"] = "answer"
    images: bool = True


class ModerationDetector:
    """The highest category score of a request, or of an answer, with every category."""

    def __init__(self, name: str, thresholds: Mapping[str, float], settings: Moderation) -> None:
        self.name, self.thresholds, self.settings = name, thresholds, settings
        self.sees = settings.images
        self.client = OpenAIModel(
            settings.url, settings.model, key=settings.key, timeout=settings.timeout_s
        )

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        with ThreadPoolExecutor(min(len(samples), THREADS) or 1) as pool:
            found = list(pool.map(self.attempt, samples))
        failures = [failure for failure in found if isinstance(failure, MmguardError)]
        if failures and len(failures) == len(samples):
            raise failures[0]
        return [self.note(one) if isinstance(one, MmguardError) else one for one in found]

    def close(self) -> None:
        self.client.close()

    def note(self, failure: MmguardError) -> Finding:
        return Finding(self.name, 1.0, "error", error=str(failure)[:300])

    def attempt(self, sample: Sample) -> Finding | MmguardError:
        try:
            return self.find(sample)
        except MmguardError as exc:
            return exc

    def find(self, sample: Sample) -> Finding:
        text, images = self.read(sample)
        categories: dict[str, float] = {}
        flagged = False
        for parts in inputs(text, images):
            result = self.post(parts)
            flagged |= result.get("flagged") is True
            for name, score in read_scores(result).items():
                categories[name] = max(score, categories.get(name, 0.0))
        label = "harmful" if flagged else "safe"
        score = max(categories.values(), default=0.0)
        chars = min(len(text), sample.chars)
        return Finding(self.name, score, label, categories, images=len(images), chars=chars)

    def read(self, sample: Sample) -> tuple[str, tuple[Image, ...]]:
        """The words and pictures that are judged."""
        request = sample.request
        images = request.images if self.settings.images else ()
        if sample.reply is None:
            return request.text, images
        if self.settings.input == "answer":
            return sample.reply, ()
        return f"{request.text}\n{sample.reply}", images

    def post(self, parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        body = {"model": self.settings.model, "input": list(parts)}
        with self.client.reported():
            response = self.client.client.post("moderations", json=body)
        if response.status_code != 200:
            raise refused(response)
        results = load_json(response.content).get("results")
        if not isinstance(results, list) or not results or not isinstance(results[0], dict):
            raise DetectorError("the moderation server's answer has no results")
        return results[0]


def inputs(text: str, images: Sequence[Image]) -> Iterator[list[dict[str, Any]]]:
    """What is sent, a list of parts at a time: the endpoint takes one picture in each."""
    words = [write_part(Text(text))] if text or not images else []
    yield [*words, *(write_picture(image) for image in images[:1])]
    for image in images[1:]:
        yield [write_picture(image)]


def write_picture(image: Image) -> dict[str, Any]:
    # A caller's own fields, such as `detail`, are none of this endpoint's.
    written: dict[str, Any] = write_part(Image(image.data, image.mime))
    return written


def read_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Scores by our category names; `DetectorError` if they are none."""
    given = result.get("category_scores")
    if not isinstance(given, dict) or not given:
        raise DetectorError("the moderation server gave no category_scores")
    scores: dict[str, float] = {}
    for name, score in given.items():
        if not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1:
            raise DetectorError(f"the moderation server scored {name!r} {score!r}, not 0 to 1")
        ours = CATEGORIES.get(name, name.replace("/", "_").replace("-", "_"))
        scores[ours] = max(float(score), scores.get(ours, 0.0))
    return scores


def load(bundle: Bundle) -> ModerationDetector:
    """The endpoint that a bundle of kind `moderation` names."""
    settings = read_settings(Moderation, bundle)
    return ModerationDetector(bundle.name, bundle.thresholds or WORDS, settings)


def name_moderation(name: str) -> ModerationDetector:
    """OpenAI's own endpoint, with the key in `OPENAI_API_KEY`."""
    return ModerationDetector(name, WORDS, parse_settings(Moderation, {}, name))
