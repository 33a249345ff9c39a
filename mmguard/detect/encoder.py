"""The main detector: a small encoder that reads a request with its answer, in milliseconds.

One pass gives p(answer is harmful), p(request is harmful), p(answer is a refusal) and the
hazards. Long answers are read in overlapping windows and the worst counts. Every window is
run by itself: dynamic quantisation looks at a whole batch, so a batch would make an answer's
score depend on its neighbours, and on a CPU it would save nothing. A linear model may read
each window too and have a share in its logit: it knows words where the network knows meaning.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from mmguard.detect.turns import Turns
from mmguard.detect.windows import Shape, Window, clean, decoded
from mmguard.detect.wording import Wording, read_wording
from mmguard.errors import BundleError
from mmguard.machine import cores
from mmguard.types import Finding, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmguard.bundles import Bundle

    Logits = NDArray[np.float32]

THREADS = "MMGUARD_THREADS"
# Without that, all cores that the process may use, but no more than these.
MOST = 4
# Texts that a server may hand over at once: windows take turns, so a long one holds up nobody.
CALLS = 8
CACHE = 8192
SESSIONS: WeakValueDictionary[bytes, Any] = WeakValueDictionary()
OPENING = Lock()


@dataclass(frozen=True, slots=True)
class Scale:
    """What turns a head's logit into a probability: sigmoid(slope x logit + shift)."""

    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, logit: float) -> float:
        import math

        return 1 / (1 + math.exp(-max(-30.0, min(30.0, self.slope * logit + self.shift))))


@dataclass(frozen=True, slots=True)
class Parts:
    """What a bundle of this kind holds besides its network.

    A window that is not its text's first lacks what went before, so it has to be surer: its
    logit counts for `margin` less.
    """

    tokenizer: Any
    heads: tuple[str, ...]
    shape: Shape = field(default_factory=Shape)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    margin: float = 0.0
    wording: Wording | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, cleaned, without special tokens."""
        ids: list[int] = self.tokenizer.encode(clean(text), add_special_tokens=False).ids
        return ids

    def windows(self, sample: Sample) -> list[Window]:
        """Every window of a sample; what base64 hides in it comes last, in its own."""
        asked = self.encode(sample.request.query)
        if sample.reply is None:
            hidden = decoded(sample.request.query)
            more = self.shape.alone(self.encode(hidden)) if hidden else []
            return self.shape.alone(asked) + more
        hidden = decoded(sample.reply)
        more = self.shape.pair(asked, self.encode(hidden)) if hidden else []
        return self.shape.pair(asked, self.encode(sample.reply)) + more

    def weigh(self, head: int, window: Window, logits: Logits) -> float:
        """What a window's logit of a head counts for; the wording's is the last."""
        found = float(logits[head])
        if self.wording is not None:
            found = self.wording.blend(found, float(logits[-1]))
        return found - self.margin * (not window.first)


class Scores:
    """The logits of the last windows by the hash of their tokens; shared between threads."""

    def __init__(self, size: int = CACHE) -> None:
        self.size, self.lock = size, Lock()
        self.kept: OrderedDict[bytes, Logits] = OrderedDict()

    def get(self, key: bytes) -> Logits | None:
        with self.lock:
            found = self.kept.get(key)
            if found is not None:
                self.kept.move_to_end(key)
            return found

    def put(self, key: bytes, logits: Logits) -> None:
        with self.lock:
            self.kept[key] = logits
            while len(self.kept) > self.size:
                self.kept.popitem(last=False)


class EncoderDetector:
    """Scores samples with the ONNX network of one bundle; safe to call from many threads.

    `threads` windows are run at once, each on one core, whether of one text or of several
    callers' texts. A stream costs one window a check: windows that were full before are found
    in the cache by their content.
    """

    sees = False

    def __init__(
        self,
        name: str,
        thresholds: Mapping[str, float],
        session: Any,
        parts: Parts,
        threads: int = 1,
    ) -> None:
        self.name, self.thresholds = name, thresholds
        self.session, self.parts, self.cache = session, parts, Scores()
        self.threads, self.at_once, self.turns = threads, max(threads, CALLS), Turns(threads)
        self.pool = ThreadPoolExecutor(threads - 1, f"mmguard-{name}") if threads > 1 else None

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        windows = [self.parts.windows(sample) for sample in samples]
        logits = self.read({key_of(w): w for found in windows for w in found})
        return [
            self.find(sample, [(w, logits[key_of(w)]) for w in found])
            for sample, found in zip(samples, windows, strict=True)
        ]

    def read(self, windows: Mapping[bytes, Window]) -> dict[bytes, Logits]:
        """The logits of windows, from the cache where it has them."""
        found = {key: self.cache.get(key) for key in windows}
        fresh = {key: windows[key] for key, logits in found.items() if logits is None}
        for key, logits in self.run_all(fresh).items():
            self.cache.put(key, logits)
            found[key] = logits
        return {key: logits for key, logits in found.items() if logits is not None}

    def run_all(self, windows: Mapping[bytes, Window]) -> dict[bytes, Logits]:
        """Each window's logits, made by this thread and by those of the pool that are free."""
        todo = deque(windows.items())
        made: dict[bytes, Logits] = {}

        def work() -> None:
            while todo:
                try:
                    key, window = todo.popleft()
                except IndexError:
                    return
                made[key] = self.run(window)

        more = min(self.threads, len(windows)) - 1
        helpers = [self.pool.submit(work) for _ in range(more)] if self.pool else []
        try:
            work()
            for helper in helpers:
                # One that has not begun is busy with another text, and not waited for.
                if not helper.cancel():
                    helper.result()
        finally:
            todo.clear()
        return made

    def run(self, window: Window) -> Logits:
        """The heads' logits, and the wording's after them if there is one."""
        import numpy as np

        fed = {
            "input_ids": np.array([window.ids], np.int64),
            "token_type_ids": np.array([window.types], np.int64),
        }
        with self.turns:
            logits: Logits = self.session.run(None, fed)[0][0]
        if (wording := self.parts.wording) is None:
            return logits
        return np.append(logits, np.float32(wording.read(window, self.parts.tokenizer)))

    def find(self, sample: Sample, read: Sequence[tuple[Window, Logits]]) -> Finding:
        head = self.parts.heads.index("request" if sample.reply is None else "answer")
        weighed = [self.parts.weigh(head, window, found) for window, found in read]
        worst = read[weighed.index(max(weighed))][1]
        score = self.scale(head, max(weighed))
        refused = sample.reply is not None and self.refusal(read[0][1]) >= 0.5
        label = "harmful" if score >= 0.5 else "refusal" if refused else "safe"
        seen = len(sample.request.query) + len(sample.reply or "")
        return Finding(self.name, score, label, self.hazards(score, worst), chars=seen)

    def hazards(self, score: float, logits: Logits) -> dict[str, float]:
        """Each hazard's part of the score: the likeliest has all of it.

        So a rule for a category has the thresholds of the whole, and harm that no head can
        name is not lost between two rules.
        """
        found = {
            name: self.scale(i, float(logits[i]))
            for i, name in enumerate(self.parts.heads)
            if name not in ("answer", "request", "refusal")
        }
        top = max(found.values(), default=1.0)
        return {name: score * (part / top) for name, part in found.items()}

    def refusal(self, logits: Logits) -> float:
        """p(the answer is a refusal)."""
        place = self.parts.heads.index("refusal")
        return self.scale(place, float(logits[place]))

    def scale(self, head: int, logit: float) -> float:
        return self.parts.scales.get(self.parts.heads[head], Scale())(logit)


def key_of(window: Window) -> bytes:
    text = f"{window.ids}{sum(window.types)}"
    return blake2b(text.encode(), digest_size=16).digest()


def open_session(model: bytes) -> Any:
    """An ONNX Runtime session on the CPU, one thread a call, no busy waiting.

    Equal models share one session.
    """
    import onnxruntime as ort

    key = blake2b(model).digest()
    with OPENING:
        if (found := SESSIONS.get(key)) is None:
            SESSIONS[key] = found = make_session(ort, model)
        return found


def make_session(ort: Any, model: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        # The fused kernel takes several times as long as the two it replaces.
        disabled_optimizers=["SkipLayerNormFusion"],
    )


def read_parts(bundle: Bundle) -> Parts:
    from tokenizers import Tokenizer

    settings = bundle.settings
    try:
        tokenizer = Tokenizer.from_str(bundle.read("tokenizer.json").decode())
        scales = {name: Scale(**value) for name, value in settings["scales"].items()}
        shape, margin = Shape(**settings["shape"]), float(settings["margin"])
        heads = tuple(settings["heads"])
        return Parts(tokenizer, heads, shape, scales, margin, read_wording(bundle))
    except BundleError:
        raise
    except Exception as exc:
        raise BundleError(f"bundle {bundle.name!r} is not of this kind: {exc!r}") from exc


def threads_of(bundle: Bundle) -> int:
    wanted = os.environ.get(THREADS) or str(bundle.settings.get("threads") or min(cores(), MOST))
    if not wanted.isdigit() or int(wanted) < 1:
        raise BundleError(f"{THREADS} is {wanted!r}: give the number of cores to score on")
    return int(wanted)


def load(bundle: Bundle) -> EncoderDetector:
    """The detector of a bundle that `mmguard train encoder` wrote."""
    parts, threads = read_parts(bundle), threads_of(bundle)
    try:
        session = open_session(bundle.read("model.onnx"))
    except BundleError:
        raise
    except Exception as exc:
        raise BundleError(f"bundle {bundle.name!r}: model.onnx does not load: {exc}") from exc
    return EncoderDetector(bundle.name, bundle.thresholds, session, parts, threads)
