"""Any HuggingFace sequence classifier as a detector.

Reads the answer, or the request and the answer as a pair. What is longer than the model reads
is scored in overlapping windows, and the worst one counts: nothing goes unseen.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mmguard.detect.settings import WORDS, Weights, load_weights, place_model, read_settings
from mmguard.detect.windows import spread
from mmguard.errors import BundleError, DetectorError
from mmguard.models.hf import evaluating
from mmguard.types import Finding, Sample

if TYPE_CHECKING:
    from mmguard.bundles import Bundle

# Names of labels, without case and separators.
SAFE = re.compile(
    "safe|benign|harmless|normal|neutral|ok|clean|acceptable|nontoxic|nothate|nonhate|unharmful"
    "|sfw|legit|none"
)
UNSAFE = re.compile(
    "unsafe|harmful|harm|toxic|toxicity|hate|hateful|hatespeech|offensive|abusive|jailbreak"
    "|injection|malicious|nsfw"
)
GENERIC = re.compile(r"label\d+")


class Classifier(Weights):
    """The settings of a bundle of kind `classifier`.

    `unsafe` are the names of its unsafe labels, by default what the names themselves say.
    `input: pair` gives it the request and the answer, `answer` the answer alone; a request is
    always judged alone. `max_tokens` bounds a window.
    """

    unsafe: tuple[str, ...] = ()
    input: Literal["pair", "answer"] = "pair"
    max_tokens: Annotated[int, Field(ge=16)] = 512
    batch_size: Annotated[int, Field(ge=1)] = 16


@dataclass(frozen=True, slots=True)
class Window:
    """One text, or pair of texts, that fits the model; `row` is the sample it belongs to."""

    row: int
    first: str
    second: str | None = None


class ClassifierDetector:
    """p(unsafe): the sum of the unsafe labels' shares, or, of many labels, the highest."""

    sees = False

    def __init__(self, name: str, thresholds: Mapping[str, float], settings: Classifier) -> None:
        self.name, self.thresholds, self.settings = name, thresholds, settings
        self.tokenizer = load_weights("AutoTokenizer", settings.model, **settings.pinned)
        model = load_weights(
            "AutoModelForSequenceClassification", settings.model, **settings.pinned
        )
        self.model = place_model(model, settings.device)
        self.labels: dict[int, str] = dict(self.model.config.id2label)
        self.many = self.model.config.problem_type == "multi_label_classification"
        self.unsafe = choose_labels(self.labels, settings, many=self.many)
        self.lock = threading.Lock()
        if self.tokenizer.pad_token_id is None:
            raise BundleError(
                f"settings.model {settings.model!r}: its tokenizer has no pad token, so that"
                " rows cannot share a batch; set one and save it"
            )

    @property
    def size(self) -> int:
        """The most tokens of one window, special ones included."""
        own = getattr(self.model.config, "max_position_embeddings", None) or 512
        return int(min(self.settings.max_tokens, self.tokenizer.model_max_length, own))

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        # A fast tokenizer fails when two threads pad with it at once.
        with self.lock:
            windows = [w for i, sample in enumerate(samples) for w in self.split(i, sample)]
            rows: list[list[list[float]]] = [[] for _ in samples]
            for batch in self.batches(windows):
                for window, shares in zip(batch, self.classify(batch), strict=True):
                    rows[window.row].append(shares)
            return [self.find(sample, row) for sample, row in zip(samples, rows, strict=True)]

    def find(self, sample: Sample, rows: Sequence[Sequence[float]]) -> Finding:
        if not all(0 <= share <= 1 for row in rows for share in row):
            return Finding(self.name, 1.0, "error", error="the classifier gave no probabilities")
        worst = max(rows, key=self.weigh)
        score = self.weigh(worst)
        names = {i: re.sub(r"\W+", "_", self.labels[i].strip().lower()) for i in self.unsafe}
        categories = {name: max(row[i] for row in rows) for i, name in names.items()}
        label = self.labels[max(range(len(worst)), key=worst.__getitem__)]
        chars = self.count(sample)
        return Finding(self.name, score, label, categories if len(names) > 1 else {}, chars=chars)

    def weigh(self, row: Sequence[float]) -> float:
        unsafe = [row[i] for i in self.unsafe]
        return max(unsafe) if self.many else min(1.0, sum(unsafe))

    def count(self, sample: Sample) -> int:
        """Characters of the sample that were read; of a pair's request its last part."""
        if sample.reply is None:
            return len(sample.request.query)
        if self.settings.input == "answer":
            return len(sample.reply)
        return len(self.tail(sample.request.query)) + len(sample.reply)

    # -- windows --------------------------------------------------------------

    def split(self, row: int, sample: Sample) -> list[Window]:
        """The windows of a sample: together they hold every word of what is judged."""
        room = self.size - self.tokenizer.num_special_tokens_to_add(pair=True)
        query = sample.request.query
        if sample.reply is None:
            return [Window(row, piece) for piece in self.pieces(query, room)]
        if self.settings.input == "answer":
            return [Window(row, piece) for piece in self.pieces(sample.reply, room)]
        head = self.tail(query)
        left = room - len(self.spans(head))
        return [Window(row, head, piece) for piece in self.pieces(sample.reply, left)]

    def tail(self, query: str) -> str:
        """The last words of a request, in at most a third of the window."""
        spans = self.spans(query)[-(self.size // 3) :]
        return query[spans[0][0] :] if spans else query

    def pieces(self, text: str, room: int) -> list[str]:
        """Overlapping pieces of at most `room` tokens."""
        # Where a piece begins inside a word, its tokens may be some more than they were.
        room = max(2, room - 4)
        spans = self.spans(text)
        cuts = [piece for piece in spread(range(len(spans)), room, room // 2) if piece]
        return [text[spans[cut[0]][0] : spans[cut[-1]][1]] for cut in cuts] or [text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of the text begins and ends, in characters."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return [(start, end) for start, end in encoded["offset_mapping"] if end > start]

    def batches(self, windows: Sequence[Window]) -> Iterator[list[Window]]:
        """Windows that can share a call: a lone text is not a pair with an empty one."""
        pairs = [window for window in windows if window.second is not None]
        alone = [window for window in windows if window.second is None]
        step = self.settings.batch_size
        for group in (pairs, alone):
            yield from (group[i : i + step] for i in range(0, len(group), step))

    # -- model ----------------------------------------------------------------

    def classify(self, windows: Sequence[Window]) -> list[list[float]]:
        """Each window's probability of each label."""
        import torch

        given = {"text": [w.first for w in windows]}
        if pairs := [w.second for w in windows if w.second is not None]:
            given["text_pair"] = pairs
        inputs = self.tokenizer(**given, padding=True, return_tensors="pt", verbose=False)
        with evaluating(self.model), torch.inference_mode():
            try:
                logits = self.model(**inputs.to(self.model.device)).logits.float()
            except Exception as exc:
                raise DetectorError(f"detector {self.name!r}: {type(exc).__name__}: {exc}") from exc
        single = self.many or logits.shape[-1] == 1
        shares: list[list[float]] = (logits.sigmoid() if single else logits.softmax(-1)).tolist()
        return shares


def choose_labels(labels: Mapping[int, str], settings: Classifier, *, many: bool) -> list[int]:
    """Indices of the unsafe labels: the ones named, or the ones whose names say it.

    Raises `BundleError` where that is ambiguous.
    """
    known = {name: i for i, name in labels.items()}
    if settings.unsafe:
        if lost := sorted(set(settings.unsafe) - set(known)):
            raise BundleError(
                f"settings.unsafe {lost[0]!r}: {settings.model!r} has the labels"
                f" {sorted(known)}; name some of these"
            )
        return [known[name] for name in settings.unsafe]
    plain = {i: re.sub(r"[\W_]+", "", name.lower()) for i, name in labels.items()}
    safe = {i for i, name in plain.items() if SAFE.fullmatch(name)}
    unsafe = {i for i, name in plain.items() if UNSAFE.fullmatch(name)}
    generic = any(GENERIC.fullmatch(name) for name in plain.values())
    chosen = sorted(set(plain) - safe) if safe or many else sorted(unsafe)
    rest = set(plain) - safe - unsafe
    if generic or not chosen or (rest and not safe and not many):
        raise BundleError(
            f"settings.unsafe is missing, and the labels of {settings.model!r},"
            f" {sorted(known)}, do not say which are unsafe: name them"
        )
    return chosen


def load(bundle: Bundle) -> ClassifierDetector:
    """The classifier that a bundle of kind `classifier` names."""
    settings = read_settings(Classifier, bundle)
    return ClassifierDetector(bundle.name, bundle.thresholds or WORDS, settings)
