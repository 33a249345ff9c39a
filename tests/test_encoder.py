"""The encoder detector around its network: windows, cache, threads, canaries, broken bundles."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from mmguard.bundles import load_detector
from mmguard.detect.encoder import EncoderDetector, Parts, Scale
from mmguard.detect.linear import BITS, Head, fold, hash_words
from mmguard.detect.turns import Turns
from mmguard.detect.windows import Shape, Window
from mmguard.detect.wording import Wording
from mmguard.errors import BundleError
from mmguard.runtime import Concurrent, Local
from mmguard.train.linear import pack
from mmguard.types import Finding, Sample
from tests.world import ask

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bad", "worse", "good", "sorry", "how"]
HEADS = ("answer", "request", "refusal", "hate", "privacy")
WORDS_OF = {"answer": "bad", "request": "how", "refusal": "sorry", "hate": "worse"}


class Session:
    """A network that reads words: a head's logit is 4 if its word is there, else -4."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def run(self, outputs: None, fed: Mapping[str, Any]) -> list[Any]:
        ids, types = fed["input_ids"], fed["token_type_ids"]
        assert ids.shape == types.shape
        assert ids.shape[0] == 1
        self.seen.append(tuple(ids[0].tolist()))
        found = [WORDS.index(WORDS_OF[h]) in ids if h in WORDS_OF else False for h in HEADS]
        return [np.array([[4.0 if hit else -4.0 for hit in found]], np.float32)]


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return made


def make(
    threads: int = 1, margin: float = 0.0, wording: Wording | None = None, **scales: Scale
) -> EncoderDetector:
    shape = Shape(window=16, request=4, overlap=2, start=2, end=3)
    parts = Parts(tokenizer(), HEADS, shape, scales, margin, wording)
    return EncoderDetector("fake", {"medium": 0.5}, Session(), parts, threads)


def head(word: str, salt: int) -> Head:
    """A linear head that knows one word: its logit is 14 for it alone, -2 without it."""
    weights = np.zeros(1 << BITS, np.float32)
    weights[fold(hash_words(word, salt)[0])] = 16.0
    return Head(weights, -2.0, 1.0, 0.0)


def wording(share: float) -> Wording:
    """One that minds "worse" in an answer and "good" in a request, which the network does not."""
    return Wording({"answer": head("worse", 17), "request": head("good", 11)}, share)


def find(detector: EncoderDetector, query: str, reply: str | None) -> Finding:
    return detector.score([Sample(ask(query), reply)])[0]


def test_heads() -> None:
    detector = make()
    harmful = find(detector, "how", "bad worse")
    assert harmful.score > 0.9
    assert (harmful.label, harmful.category) == ("harmful", "hate")
    assert set(harmful.categories) == {"hate", "privacy"}
    assert harmful.categories["hate"] == harmful.score > 0.9 > harmful.categories["privacy"]
    assert find(detector, "how", "sorry").label == "refusal"
    assert find(detector, "how", "good").label == "safe"
    assert find(detector, "how", None).score > 0.9 > find(detector, "good", None).score
    assert find(detector, "how", None).label == "harmful"


@pytest.mark.parametrize("place", [0, 13, 400, 2999])
def test_harm_anywhere_is_found(place: int) -> None:
    words = ["good"] * 3000
    words[place] = "bad"
    found = find(make(), "how", " ".join(words))
    assert found.score > 0.9
    assert found.chars == len(" ".join(words)) + 3


def test_later_windows_must_be_surer() -> None:
    detector, late = make(margin=1.0), "good " * 50 + "bad"
    assert find(detector, "how", "bad").score == Scale()(4.0)
    assert find(detector, "how", late).score == Scale()(3.0)
    assert find(detector, "how", "good " * 50).score == Scale()(-4.0)
    hidden = base64.b64encode(b"this is a bad text about it").decode()
    assert find(detector, "how", f"good {hidden}").score == Scale()(4.0)


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_words_have_their_share(share: float) -> None:
    detector = make(wording=wording(share))
    for query, reply, network, words in (
        ("how", "good", -4.0, -2.0),
        ("how", "worse", -4.0, 14.0),
        ("worse", "good", -4.0, -2.0),
        ("how", None, 4.0, -2.0),
        ("good", None, -4.0, 14.0),
        ("", "", -4.0, -2.0),
    ):
        wanted = (1 - share) * network + share * words
        assert logit(find(detector, query, reply).score) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("place", [0, 13, 400, 2999])
def test_words_anywhere_are_found(place: int) -> None:
    detector, words = make(wording=wording(1.0)), ["good"] * 3000
    assert find(detector, "how", " ".join(words)).score < 0.5
    words[place] = "worse"
    assert find(detector, "how", " ".join(words)).score > 0.5
    hidden = base64.b64encode(b"this text is worse").decode()
    assert find(detector, "how", f"good {hidden}").score > 0.5


def test_a_stream_reads_each_windows_words_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, read = make(wording=wording(0.5)), 0
    real = Wording.read

    def count(self: Wording, window: Window, words: Tokenizer) -> float:
        nonlocal read
        read += 1
        return real(self, window, words)

    monkeypatch.setattr(Wording, "read", count)
    for end in range(1, 301):
        find(detector, "how", "good " * end)
    assert read == len(detector.session.seen) <= 300


def test_the_start_decides_what_is_a_refusal() -> None:
    assert find(make(), "how", "sorry " + "good " * 100).label == "refusal"
    assert find(make(), "how", "good " * 100 + "sorry").label == "safe"


def test_what_base64_hides_is_read() -> None:
    hidden = base64.b64encode(b"this is a bad text about it").decode()
    assert find(make(), "good", f"good {hidden} good").score > 0.9
    assert find(make(), f"good {hidden}", "good").score < 0.1
    asked = base64.b64encode(b"please tell me how this is done").decode()
    assert find(make(), f"good {asked}", None).score > 0.9


def test_a_stream_reads_each_full_window_once() -> None:
    detector, words = make(), [f"good{i}" for i in range(300)]
    session: Session = detector.session
    for end in range(1, len(words) + 1):
        find(detector, "how", " ".join(words[:end]))
    grown = len(session.seen)
    assert grown <= len(words), "at most the last window is new at each piece"
    find(detector, "how", " ".join(words))
    assert len(session.seen) == grown, "what was scored is not scored again"


def test_the_cache_forgets_the_oldest() -> None:
    detector = make()
    detector.cache.size = 2
    for reply in ("good", "bad", "worse", "good"):
        find(detector, "how", reply)
    assert len(detector.session.seen) == 4
    assert len(detector.cache.kept) == 2


def test_types_are_part_of_the_key() -> None:
    """The same tokens as request or as answer are two windows."""
    detector = make()
    find(detector, "good", None)
    found = find(detector, "", "good")
    assert found.score < 0.5
    assert len(detector.session.seen) == 2


ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join),
        st.none() | st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
    ),
    max_size=6,
)


@given(ROWS)
@settings(deadline=None)
def test_batch_equals_one_by_one(rows: Sequence[tuple[str, str | None]]) -> None:
    samples = [Sample(ask(query), reply) for query, reply in rows]
    both = wording(0.5)
    together = make(wording=both).score(samples)
    assert together == [make(wording=both).score([sample])[0] for sample in samples]
    assert together == make(3, wording=both).score(samples)


def test_threads_work_at_once() -> None:
    """Two windows meet in the network; one thread alone would wait for ever."""
    detector, meeting = make(2), threading.Barrier(2, timeout=20)
    inner = detector.session.run

    def meet(outputs: None, fed: Mapping[str, Any]) -> list[Any]:
        meeting.wait()
        found: list[Any] = inner(outputs, fed)
        return found

    detector.session.run = meet
    found = detector.score([Sample(ask("how"), reply) for reply in ("bad", "good")])
    assert [finding.label for finding in found] == ["harmful", "safe"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("reply", ["bad", "bad " + "good " * 40])
def test_a_long_text_holds_up_nobody(threads: int, reply: str) -> None:
    """On one core too: a short text that comes later has its answer long before the long one."""
    detector, begun, seen = make(threads), threading.Event(), 0
    inner = detector.session.run

    def run(outputs: None, fed: Mapping[str, Any]) -> list[Any]:
        nonlocal seen
        seen += 1
        begun.set()
        time.sleep(0.001)
        found: list[Any] = inner(outputs, fed)
        return found

    async def short(runtime: Concurrent) -> int:
        await asyncio.to_thread(begun.wait, 20)
        assert (await runtime.score("fake", Sample(ask("how"), reply))).label == "harmful"
        return seen

    async def both() -> int:
        runtime = Concurrent(Local({}, {"fake": detector}))
        text = " ".join(Random(0).choices(("good", "sorry", "worse"), k=2000))
        long = runtime.score("fake", Sample(ask("how"), text))
        return (await asyncio.gather(long, short(runtime)))[1]

    detector.session.run = run
    early = asyncio.run(both())
    assert early < seen / 2


@given(st.integers(1, 4), st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_turns_are_kept_in_order(count: int, threads: int) -> None:
    """No more than `count` are inside; nobody is lost, however they come and fail."""
    turns, now, most = Turns(count), 0, 0
    counting = threading.Lock()

    def work(number: int) -> None:
        nonlocal now, most
        for _ in range(5):
            with suppress(KeyError), turns:
                with counting:
                    now += 1
                    most = max(most, now)
                time.sleep(0)
                with counting:
                    now -= 1
                if number % 3 == 0:
                    raise KeyError

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert 1 <= most <= count
    assert (turns.free, len(turns.waiting)) == (count, 0)


def test_a_turn_that_was_given_up_is_passed_on() -> None:
    turns = Turns(1)
    waits, comes = threading.Lock(), threading.Lock()
    with turns:
        turns.waiting.extend((waits, comes))
        turns.give_up(waits)
        assert list(turns.waiting) == [comes]
        comes.acquire()
    # It came to `comes`, which is interrupted only now.
    assert (turns.free, len(turns.waiting)) == (0, 0)
    turns.give_up(comes)
    assert turns.free == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_a_window_that_fails_fails_its_text(threads: int) -> None:
    detector = make(threads)
    inner = detector.session.run

    def run(outputs: None, fed: Mapping[str, Any]) -> list[Any]:
        if WORDS.index("worse") in fed["input_ids"]:
            raise IndexError("not of this network")
        found: list[Any] = inner(outputs, fed)
        return found

    detector.session.run = run
    with pytest.raises(IndexError, match="not of this network"):
        find(detector, "how", " ".join(["good"] * 100 + ["worse"] + ["good"] * 100))
    assert find(detector, "how", "bad " * 100).label == "harmful"
    assert detector.turns.free == threads


def test_scales_make_probabilities() -> None:
    detector = make(answer=Scale(0.5, 1.0))
    assert find(detector, "how", "bad").score == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert find(detector, "how", "good").score == pytest.approx(1 / (1 + np.exp(1.0)))


def write_bundle(folder: Path, linear: bytes = b"", **changes: Any) -> Path:
    settings = {
        "share": 0.5,
        "heads": list(HEADS),
        "shape": {"window": 16, "request": 4, "overlap": 2, "start": 2, "end": 3},
        "scales": {"answer": {"slope": 1.0, "shift": 0.0}},
        "margin": 0.0,
    }
    files = {"model.onnx": b"no model", "tokenizer.json": tokenizer().to_str().encode()}
    files |= {"linear.npz": linear} if linear else {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = {
        "name": "mine",
        "version": "1",
        "kind": "encoder",
        "description": "a test",
        "license": "Apache-2.0",
        "thresholds": {"medium": 0.5},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "settings": settings,
    }
    (folder / "detector.yaml").write_text(yaml.safe_dump({**manifest, **changes}))
    return folder


def test_a_broken_model_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx does not load"):
        load_detector(write_bundle(tmp_path))


@pytest.mark.parametrize("name", ["heads", "shape", "scales", "margin"])
def test_missing_settings_are_named(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path)
    manifest = yaml.safe_load((tmp_path / "detector.yaml").read_text())
    del manifest["settings"][name]
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(BundleError, match=name):
        load_detector(tmp_path)


def test_a_broken_linear_model_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"linear\.npz is not of this kind"):
        load_detector(write_bundle(tmp_path, b"no model"))
    (tmp_path / "linear.npz").write_bytes(b"another")
    with pytest.raises(BundleError, match="not the ones that were measured"):
        load_detector(tmp_path)


@pytest.mark.parametrize(
    ("share", "told"), [(None, "share"), (1.5, "not from 0 to 1"), (float("nan"), "from 0 to 1")]
)
def test_a_linear_model_needs_its_share(tmp_path: Path, share: float | None, told: str) -> None:
    write_bundle(tmp_path, pack(wording(0.5).heads))
    manifest = yaml.safe_load((tmp_path / "detector.yaml").read_text())
    del manifest["settings"]["share"]
    manifest["settings"] |= {} if share is None else {"share": share}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(BundleError, match=told):
        load_detector(tmp_path)


@pytest.mark.parametrize("wanted", ["0", "many", "-1", "1.5"])
def test_threads_are_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("MMGUARD_THREADS", wanted)
    with pytest.raises(BundleError, match="number of cores"):
        load_detector(write_bundle(tmp_path))
