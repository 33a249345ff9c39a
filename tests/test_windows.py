"""From text to windows: nothing lost, nothing hidden, and stable while an answer grows."""

from __future__ import annotations

import base64
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from mmguard.detect.windows import Shape, clean, decoded, ends, spread

SHAPE = Shape(window=24, request=8, overlap=4)
TOKENS = st.lists(st.integers(1000, 1999), max_size=120)


@given(asked=TOKENS, answer=TOKENS)
def test_windows_fit_and_hold_every_token(asked: list[int], answer: list[int]) -> None:
    found = SHAPE.pair(asked, answer)
    head = len(ends(asked, SHAPE.request)) + 2
    seen = list(found[0].ids[head:-1])
    for before, after in pairwise(found):
        shared = SHAPE.overlap
        assert before.ids[-1 - shared : -1] == after.ids[head : head + shared]
        seen += after.ids[head + shared : -1]
    assert seen == answer
    for window in found:
        assert len(window.ids) == len(window.types) <= SHAPE.window
        assert window.ids[:head] == found[0].ids[:head]
        assert window.first == (window is found[0])
        assert window.types == (0,) * head + (1,) * (len(window.ids) - head)


@given(asked=TOKENS)
def test_requests_alone(asked: list[int]) -> None:
    found = SHAPE.alone(asked)
    held = {token for window in found for token in window.ids}
    assert held >= set(asked)
    assert all(set(window.types) == {0} and len(window.ids) <= SHAPE.window for window in found)


@given(asked=TOKENS, answer=TOKENS, cut=st.integers(0, 120))
def test_full_windows_stay_while_an_answer_grows(
    asked: list[int], answer: list[int], cut: int
) -> None:
    before, after = SHAPE.pair(asked, answer[:cut]), SHAPE.pair(asked, answer)
    assert before[:-1] == after[: len(before) - 1]


@given(ids=st.lists(st.integers(), max_size=50), limit=st.integers(3, 20))
def test_both_ends_are_kept(ids: list[int], limit: int) -> None:
    kept = ends(ids, limit)
    assert len(kept) == min(limit, len(ids))
    if len(ids) > limit:
        assert (kept[0], kept[-1]) == (ids[0], ids[-1])


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 15, 16, 1000])
def test_no_window_is_idle(size: int) -> None:
    pieces = spread(range(size), 10, 5)
    covered = [set(piece) for piece in pieces]
    for i, own in enumerate(covered[1:], 1):
        assert own - covered[i - 1], "a window that adds nothing costs time for nothing"


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        ("h\u200be\u200dl\u2060lo", "hello"),
        ("".join(chr(ord(c) + 0xFEE0) for c in "hello"), "hello"),
        ("h e l l o there", "hello there"),
        ("h.e.l.l.o", "hello"),
        ("hel\x00lo\u202e", "hello"),
        ("".join(chr(0xE0000 + ord(c)) for c in "hidden words"), "hidden words"),
        ("a plan, e.g. I am", "a plan, e.g. I am"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_clean(given_: str, read: str) -> None:
    assert clean(given_) == read


@given(st.text(st.characters(), max_size=300))
def test_clean_takes_any_text(text: str) -> None:
    found = clean(text)
    found.encode("utf-8")
    assert not any(len(word) > 80 for word in found.split())


def test_lone_surrogates_are_text() -> None:
    assert clean("a\ud800b") == "a?b"


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "Z"]), min_size=12))
def test_base64_is_read(text: str) -> None:
    said = f"{text} and more"
    run = base64.b64encode(said.encode()).decode()
    if all(char.isprintable() for char in said):
        assert said in decoded(f"Decode this: {run}, please")


@pytest.mark.parametrize(
    "text", ["", "plain words", "A" * 64, "deadbeef" * 8, "Abcdefgh" * 5 + "==="]
)
def test_what_is_not_base64_says_nothing(text: str) -> None:
    assert decoded(text) == ""
