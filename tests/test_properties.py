"""Rules 1 to 4 of the architecture, against whatever hypothesis can think of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings, strategies as st

from mmguard import guard
from mmguard.drive import stream
from mmguard.errors import DetectorError
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.types import AnyRequest, Finding, Guarded, Image, Reply, Sample, TextRequest
from tests.world import BAD, PICTURE, SEEN, ask, make_policy, make_world, words

ALPHABET = "ABD ab.\n"
TEXTS = st.text(ALPHABET, max_size=60)


class Pieces(ScriptedModel):
    """Streams the pieces it was given."""

    def __init__(self, pieces: list[str]) -> None:
        super().__init__(lambda request: "".join(pieces))
        self.pieces = pieces

    def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
        reply = self.answer(request)
        yield from self.pieces
        yield reply


class Spy(ScriptedDetector):
    """Finds `BAD`, and remembers every reply that it passed."""

    def __init__(self) -> None:
        super().__init__(self.judge, name="harm")
        self.passed: list[str] = []

    def judge(self, sample: Sample) -> float:
        reply = sample.reply or ""
        if BAD in reply:
            return 0.9
        self.passed.append(reply)
        return 0.1


def play(
    pieces: list[str], request: Any, **fields: Any
) -> tuple[list[tuple[str, list[str]]], Guarded]:
    """Each text as it left, with the replies that had passed a check by then."""
    spy = Spy()
    policy, runtime = make_world(make_policy(**fields), target=Pieces(pieces), detectors=[spy])
    flow, emitted = stream(guard(request, policy, stream=True), runtime), list[Any]()
    while True:
        try:
            emitted.append((next(flow), list(spy.passed)))
        except StopIteration as stop:
            return emitted, stop.value


@given(st.lists(TEXTS, max_size=12), st.integers(1, 20), st.integers(1, 20))
def test_window_emits_only_checked_text(pieces: list[str], window: int, hold: int) -> None:
    """Rule 1: what has left is a prefix of checked text, and lags it by `hold` in mid-stream."""
    how = {"mode": "window", "window": window, "hold": hold}
    emitted, guarded = play(pieces, ask(), stream=how, repair=["detoxify"], refusals=MARKS)
    whole, out = "".join(pieces), ""
    for text, passed in emitted:
        if text in MARKS.values():
            break
        out += text
        longest = max((p for p in passed if p.startswith(out)), key=len, default=None)
        assert longest is not None
        assert out == whole or out == guarded.text or len(longest) - len(out) >= hold
    assert "".join(text for text, _ in emitted) == guarded.text
    assert (BAD in whole) == (guarded.action != "pass")


MARKS = {"default": "<refused>", "cut": "<cut>"}


@given(st.lists(TEXTS, max_size=12))
def test_buffer_equals_the_whole(pieces: list[str]) -> None:
    emitted, guarded = play(pieces, ask(), repair=["detoxify"], refusals=MARKS)
    assert len(emitted) <= 1
    assert guarded.text == (MARKS["default"] if BAD in "".join(pieces) else "".join(pieces))


@given(st.text(max_size=40), st.lists(st.sampled_from([PICTURE, Image(b"other")]), max_size=3))
def test_no_picture_with_eyes_closed(text: str, pictures: list[Image]) -> None:
    """Rule 2: after the caption, no request that an answer comes from holds a picture."""
    target = ScriptedModel(
        lambda r: BAD if r.images and "Do not answer" not in words(r) else "fine"
    )
    policy, runtime = make_world(target=target)
    request = ask(text, *pictures)
    guarded = list(stream(guard(request, policy, stream=True), runtime))
    if pictures:
        assert guarded == ["fine"]
        assert isinstance(target.seen[-1], TextRequest)
        assert all(isinstance(m.text, str) for m in target.seen[-1].messages)
        assert not target.seen[-1].images


@given(st.lists(st.sampled_from(["fine", BAD, "", " ", "fine too"]), min_size=3, max_size=8))
def test_every_answer_was_judged(replies: list[str]) -> None:
    """Rule 3: whatever leaves as an answer has passed the very checks of a draft."""
    left = list(replies)
    target = ScriptedModel(lambda request: left.pop(0) if left else "end")
    spy = Spy()
    fields = {"repair": ["caption", "resample", "detoxify"], "refusals": MARKS}
    policy, runtime = make_world(make_policy(**fields), target=target, detectors=[spy])
    texts = list(stream(guard(SEEN, policy), runtime))
    assert all(text in spy.passed or text == MARKS["default"] for text in texts)


def broken(kind: int) -> Any:
    """A detector that fails in one of the ways that detectors fail."""
    if kind == 0:
        raise DetectorError("down")
    if kind == 1:
        raise MemoryError
    return {2: math.nan, 3: -0.1, 4: math.inf, 5: Finding("harm", 0.0, error="half loaded")}[kind]


@settings(deadline=None)
@given(st.integers(0, 5), st.booleans(), st.sampled_from(["block", "repair"]))
def test_a_broken_detector_never_means_safe(kind: int, streamed: bool, on_error: str) -> None:
    """Rule 4: no failure of a detector lets the answer out under a closed `on_error`."""
    detector = ScriptedDetector(lambda sample: broken(kind), name="harm")
    fields = {"on_error": on_error, "refusals": MARKS}
    policy, runtime = make_world(make_policy(**fields), detectors=[detector])
    texts = list(stream(guard(ask(), policy, stream=streamed), runtime))
    assert texts == [MARKS["default"]]


class Short(ScriptedDetector):
    """Loses its last finding."""

    def score(self, samples: Any) -> list[Finding]:
        return super().score(samples)[:-1]


@given(st.integers(1, 5))
def test_too_few_findings_block(rows: int) -> None:
    from mmguard.drive import run_many

    policy, runtime = make_world(detectors=[Short(lambda s: 0.0, name="harm")])
    results = run_many([guard(ask(), policy) for _ in range(rows)], runtime)
    assert all(isinstance(r, Guarded) and r.action == "block" for r in results)


@given(st.text(max_size=80), st.text(max_size=80))
def test_what_passes_is_not_touched(query: str, reply: str) -> None:
    """Rule 5, with any text at all."""
    target = ScriptedModel(lambda request: reply)
    detector = ScriptedDetector(lambda s: 0.0, name="harm")
    policy, runtime = make_world(target=target, detectors=[detector])
    assert "".join(stream(guard(ask(query), policy, stream=True), runtime)) == reply
    assert target.seen == [ask(query)]
