"""What the encoder learns from: rows as examples, their looks, and those that are made."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, strategies as st

from mmguard.errors import InputError
from mmguard.train.augment import dressed, undressed, vary
from mmguard.train.encoder import gather
from mmguard.train.made import Source, compose, cross, depict, make, refuse, shorten, taint
from mmguard.train.mix import Example, bare, contrasts, example, examples, hazards, one_pass
from tests.labelled import HARM, Row, make_row


def test_rows_become_examples() -> None:
    found = example(make_row(0, True))
    assert (found.answer, found.request, found.refusal) == (1.0, 1.0, 0.0)
    assert found.hazards == frozenset({"hate"})
    assert example(make_row(1, False)).hazards == frozenset()
    assert examples([{"source": "x", "prompt": "a", "response": "b"}]) == []


def test_pictured_requests_count_only_with_their_description() -> None:
    row: Row = {"source": "vlsbench", "prompt": "How?", "prompt_harm": 1}
    assert example(row).request is None
    described = example({**row, "meta": {"image_desc": "a burglar"}})
    assert (described.request, described.prompt) == (1.0, "How?\na burglar")
    answered = {**row, "source": "msts_en_mm", "response": "No.", "response_harm": 0}
    assert example(answered).request is None


def test_what_has_no_terms_is_left_out() -> None:
    assert examples([make_row(0, True, "shadow_alignment")]) == []


def test_refusal_marks_by_rule_are_weak() -> None:
    row = {**make_row(0, False), "refusal": None, "meta": {"refusal_rule": 1}}
    assert example(row).refusal == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("native", "named"),
    [
        ("Violent Crimes", {"violent_crimes"}),
        ("Non-Violent Crimes", {"non_violent_crimes"}),
        ("Suicide & Self-Harm", {"self_harm"}),
        ("Malware/Hacking", {"code_abuse"}),
        ("child pornograph", {"child_exploitation", "sexual_content"}),
        ("no such thing", None),
        (None, None),
    ],
)
def test_hazards(native: str | None, named: set[str] | None) -> None:
    assert hazards(native, True) == (None if named is None else frozenset(named))


def test_attacks_are_learnt_by_their_goal_too() -> None:
    row = {**make_row(0, True), "meta": {"goal": "break in"}}
    found = bare(row)
    assert found is not None
    assert found.prompt == "break in"
    assert bare(make_row(0, True)) is None


def test_contrasts() -> None:
    halves = [
        {"source": "hh", "prompt": "p", "response": r, "meta": {"pair": 1, "pref": r}}
        for r in ("rejected", "chosen")
    ]
    labelled, preferred = contrasts([*halves, {"prompt": "p", "harmful": "h", "safe": "s"}])
    assert (labelled.better.reply, labelled.worse.answer) == ("s", 1.0)
    assert (preferred.better.reply, preferred.worse.reply) == ("chosen", "rejected")
    assert preferred.worse.answer is None


TEXTS = st.text(st.sampled_from("ab .?'é\n"), max_size=80)


@given(TEXTS, TEXTS | st.none(), st.sampled_from([0.0, 1.0, None]), st.integers(0, 10**6))
def test_varying_never_makes_harm(
    prompt: str, reply: str | None, answer: float | None, seed: int
) -> None:
    start = Example(prompt, reply, answer=answer)
    found = vary(start, Random(seed))
    assert (found.reply is None) == (reply is None)
    if answer is None:
        assert found.answer is None
    else:
        assert found.answer is not None
        assert 0 <= found.answer <= answer
    assert vary(start, Random(seed)) == found


WORDS = st.text(st.sampled_from("abcde"), min_size=4, max_size=8)


@given(st.lists(WORDS, min_size=1, max_size=20), st.integers(0, 10**6))
def test_style_keeps_the_words(words: list[str], seed: int) -> None:
    text = ". ".join(words)
    listed = dressed(text, Random(seed))
    assert all(word in listed for word in words)
    plain = undressed("".join(f"* **{word}**\n" for word in words), Random(seed))
    assert plain.split() == words


@pytest.fixture(scope="module")
def source() -> Source:
    rows = [make_row(i, True, "gptfuzz_train") for i in range(20)]
    rows += [make_row(i, False, "benign_instruct") for i in range(20)]
    seen = {"prompt": "Why?", "source": "vlsbench", "meta": {"image_desc": "A burglar."}}
    return Source(examples([*rows, {**seen, "prompt_harm": 1}]))


@given(st.integers(0, 10**6))
def test_made_examples_are_what_they_say(source: Source, seed: int) -> None:
    draw = Random(seed)
    refused = refuse(source, draw)
    assert (refused.answer, refused.refusal, refused.request) == (0.0, 1.0, 1.0)
    composed = compose(source, draw)
    assert composed.answer == 0
    assert not any(text[:40] in (composed.reply or "") for text in HARM)
    tainted = taint(source, draw)
    assert tainted.answer == 1
    assert len((tainted.reply or "").split("\n\n")) > 1
    shown = depict(source, draw)
    assert "A burglar." in (shown.reply or "")
    assert shown.answer == any(text[-30:] in (shown.reply or "") for text in HARM)
    crossed = cross(source, draw)
    assert crossed.request is not None
    assert crossed.request + (crossed.answer or 0.0) == 1


def test_refusals_repeat_the_harm(source: Source) -> None:
    made = [refuse(source, Random(i)) for i in range(60)]
    assert any(e.prompt.rstrip("?").lower() in (e.reply or "").lower() for e in made)


def test_what_lacks_parts_is_not_made() -> None:
    assert make(examples([make_row(0, False)]), Random(0)) == []
    pool = examples([make_row(i, True) for i in range(40)])
    assert {e.refusal for e in make(pool, Random(0))} == {1.0}


def test_hard_ones_come_oftener() -> None:
    easy = Example("p", "r", answer=0.0, request=0.0)
    hard = Example("p", "r", answer=0.0, request=1.0)
    pictured = Example("p", "r", answer=0.0, source="msts_en_mm")
    harmful = Example("p", "r", answer=1.0, request=1.0)
    drawn = one_pass([easy, hard, pictured, harmful], Random(0), {}, hard=3.0)
    assert [drawn.count(e) for e in (easy, hard, pictured, harmful)] == [1, 3, 3, 1]


def test_short_answers() -> None:
    found = shorten(Example("p", "one two three " * 9, answer=0.0))
    assert 1 <= len((found.reply or "").split()) <= 15


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        gather([{"prompt": "a", "response": "b"}])
