"""The fast first gate: a hashed linear model over the words of a request and its answer.

It knows word and character n-grams and nothing of meaning, in well under a millisecond on
one core. Long answers are scored in overlapping windows and the worst one counts, so harm
cannot hide behind a long harmless beginning.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmguard.errors import BundleError
from mmguard.types import Finding, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmguard.bundles import Bundle

    Hashes = NDArray[np.uint32]

BITS = 18
WINDOW, STRIDE = 2400, 1200
START = 12
WORD = re.compile(r"\w+|[^\w\s]")
# Odd multipliers of Knuth's and Murmur's kind: what they spread is all that matters.
FIRST, SECOND, THIRD = 2654435761, 2246822519, 3266489917


@dataclass(frozen=True, slots=True)
class Head:
    """A logistic model: weights by hash, intercept, and the scale that calibrates its logit."""

    weights: NDArray[np.float32]
    bias: float
    scale: float
    shift: float

    def score(self, fields: Sequence[Hashes]) -> float:
        """p(harmful) of one text, given the hashes of each of its fields."""
        return 1 / (1 + math.exp(-self.logit(fields)))

    def logit(self, fields: Sequence[Hashes]) -> float:
        """The calibrated logit of that, from -30 to 30."""
        raw = self.bias
        for hashes in fields:
            if len(hashes):
                raw += float(self.weights[hashes].sum()) / math.sqrt(len(hashes))
        return max(-30.0, min(30.0, self.scale * raw + self.shift))


def clean(text: str) -> str:
    """The text in one case and one form, so that spelling tricks of Unicode cost an attacker."""
    return unicodedata.normalize("NFKC", text).casefold()


def windows(text: str) -> list[str]:
    """Overlapping pieces of `WINDOW` characters; together they hold every character."""
    last = max(0, len(text) - WINDOW)
    starts = [*range(0, last, STRIDE), last] if last else [0]
    return [text[start : start + WINDOW] for start in starts]


def hash_words(text: str, salt: int) -> tuple[Hashes, Hashes]:
    """Hashes of the words and of the pairs of neighbouring words."""
    import numpy as np

    found = [zlib.crc32(word.encode("utf-8", "replace")) for word in WORD.findall(text)]
    words = np.array(found, dtype=np.uint32) * np.uint32(FIRST) + np.uint32(salt)
    pairs = words[:-1] * np.uint32(SECOND) + words[1:] * np.uint32(THIRD)
    return words, pairs


def hash_chars(text: str, size: int, salt: int) -> Hashes:
    """Hashes of every run of `size` bytes."""
    import numpy as np

    data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint32)
    count = max(0, len(data) - size + 1)
    runs = np.full(count, salt, dtype=np.uint32)
    for offset in range(size):
        runs = runs * np.uint32(SECOND) + data[offset : offset + count] + np.uint32(1)
    return runs


def fold(hashes: Hashes) -> Hashes:
    """Hashes as places in the table: their best-mixed bits."""
    import numpy as np

    return (hashes * np.uint32(FIRST)) >> np.uint32(32 - BITS)


def request_fields(query: str) -> list[Hashes]:
    """The fields of a request: words, pairs, runs of five bytes."""
    words, pairs = hash_words(query, 11)
    return [fold(words), fold(pairs), fold(hash_chars(query, 5, 13))]


def answer_fields(answer: str) -> list[Hashes]:
    """The fields of one window of an answer; its first words count once more by themselves."""
    words, pairs = hash_words(answer, 17)
    start, joined = hash_words(" ".join(WORD.findall(answer[:200])[:START]), 19)
    return [
        fold(words),
        fold(pairs),
        fold(hash_chars(answer, 5, 23)),
        fold(start),
        fold(joined),
    ]


class LinearDetector:
    """Two heads: p(answer is harmful | request, answer), and p(request is harmful)."""

    sees = False

    def __init__(
        self, name: str, thresholds: Mapping[str, float], heads: Mapping[str, Head]
    ) -> None:
        self.name, self.thresholds = name, thresholds
        self.answer, self.request = heads["answer"], heads["request"]

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        return [self.find(sample) for sample in samples]

    def find(self, sample: Sample) -> Finding:
        asked = clean(sample.request.query)
        head = request_fields(asked[-WINDOW:])
        if sample.reply is None:
            score = max(self.request.score(request_fields(w)) for w in windows(asked))
            seen = len(sample.request.query)
        else:
            pieces = windows(clean(sample.reply))
            score = max(self.answer.score([*head, *answer_fields(piece)]) for piece in pieces)
            seen = min(len(sample.request.query), WINDOW) + len(sample.reply)
        return Finding(self.name, score, "harmful" if score >= 0.5 else "safe", chars=seen)


def read_heads(bundle: Bundle, file: str = "weights.npz") -> dict[str, Head]:
    import numpy as np

    try:
        stored: Any = np.load(io.BytesIO(bundle.read(file)), allow_pickle=False)
        heads = {name: read_head(stored, name) for name in ("answer", "request")}
    except (KeyError, ValueError, OSError) as exc:
        raise BundleError(f"bundle {bundle.name!r}: {file} is not of this kind: {exc}") from exc
    if any(head.weights.shape != (1 << BITS,) for head in heads.values()):
        raise BundleError(f"bundle {bundle.name!r}: its tables must have {1 << BITS} weights")
    return heads


def read_head(stored: Any, name: str) -> Head:
    bias, scale, shift = (float(value) for value in stored[f"{name}_scalars"])
    table = stored[f"{name}_weights"].astype("float32") * float(stored[f"{name}_unit"])
    return Head(table, bias, scale, shift)


def load(bundle: Bundle) -> LinearDetector:
    """The detector of a bundle that `mmguard train linear` wrote."""
    return LinearDetector(bundle.name, bundle.thresholds, read_heads(bundle))
