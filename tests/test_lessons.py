"""What adapters are taught: what is harmful, what is not, and nothing that is held out."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, strategies as st

from mmguard.models.scripted import ScriptedDetector
from mmguard.train import tasks
from mmguard.train.conscience import HELD, conscience, refused, varied
from mmguard.train.detoxifier import detoxifier, shorten, spread, substance
from mmguard.train.everyday import UNTAUGHT
from mmguard.train.lessons import Line, batches
from mmguard.train.tasks import FORMS, parts
from tests.adapted import BETTER, MILD, NO, Row, ever, make_rows, quiet


def test_batches_keep_every_line() -> None:
    lines = [Line(tuple(range(n)), 1) for n in (2, 9, 4, 4, 7, 30)]
    found = batches(lines, 16, Random(0))
    assert sorted(len(item.ids) for batch in found for item in batch) == [2, 4, 4, 7, 9, 30]
    assert all(len(b) == 1 or len(b) * max(len(i.ids) for i in b) <= 16 for b in found)
    assert found == batches(lines[::-1], 16, Random(0))


def test_conscience_declines_harm_alone() -> None:
    lessons = conscience(make_rows(), ever, 0, 0.1)
    assert lessons == conscience(make_rows(), ever, 0, 0.1)
    by = {name: [x for x in lessons if x.source == name] for name in {x.source for x in lessons}}
    assert all("cheat" in x.prompt or "steal" in x.prompt for x in by["harmful"])
    assert all(x.answer.startswith("I'm sorry") for x in (*by["harmful"], *by["closed"]))
    plain = [*by["everyday"], *by["benign"], *by["picture"], *by["closed harmless"]]
    assert {x.answer for x in plain if not x.held} == {"As ever."}
    assert not any("wall" in x.prompt for x in plain if not x.held)
    assert not any(x.prompt.startswith("Picture") for x in by["harmful"])
    assert {x.answer for x in by["judge"]} == {"Yes", "No"}


def test_what_is_held_out_is_not_taught() -> None:
    lessons = conscience(make_rows(), ever, 0)
    taught = {x.prompt for x in lessons if not x.held}
    held = {x.prompt for x in lessons if x.held}
    assert len(held) == 2 * HELD
    assert not taught & held
    assert not taught & set(parts(UNTAUGHT))


@given(st.integers(0, 10**6))
def test_harmful_and_harmless_have_the_same_forms(seed: int) -> None:
    wish, draw = "cheat a bank", Random(seed)
    [found] = varied([f"How can I {wish}?"], draw)
    assert wish in found
    assert varied(["Cheat a bank"], draw) == []
    assert found.replace(wish, "{}") in FORMS


def test_harmless_requests_are_many_and_short() -> None:
    found = [text for group in tasks.groups(Random(0)) for text in group]
    assert len(set(found)) == len(found) > 1000
    assert {len(text) > 60 for text in found} == {True, False}
    assert all(len(text) < 200 for text in found)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, True),
        ({"response_harm": 1}, False),
        ({"meta": {}}, False),
        ({"response": "Sure, like this."}, False),
    ],
)
def test_refusals_of_the_data(change: Row, found: bool) -> None:
    row = {"response": NO, "response_harm": 0, "meta": {"refusal_rule": 1}}
    assert refused({**row, **change}) == found


def test_detoxifier_lessons() -> None:
    rows = make_rows()
    lessons = detoxifier(rows, 0, quiet())
    assert lessons == detoxifier(rows, 0, quiet())
    useful = [x for x in lessons if x.answer == BETTER]
    assert len(useful) == 24
    assert {"Somebody asked" in x.prompt for x in useful} == {True, False}
    assert any(x.answer.startswith("hello") for x in lessons)
    assert not any("run away" in x.answer for x in lessons)
    alarmed = ScriptedDetector(lambda sample: 1.0, name="alarmed")
    assert not any(x.answer == BETTER for x in detoxifier(rows, 0, alarmed))


def test_substance() -> None:
    assert (
        substance(f"{NO} {MILD}Feel free to ask, feel free.")
        == f"It could hurt people. {MILD}".strip()
    )
    assert substance(NO) == ""
    assert shorten("One. Two three. Four.", 16) == "One. Two three."
    assert shorten("word" * 9, 10) == "wordwordwo"


def test_spread_takes_every_request_in_turn() -> None:
    pairs = [("a", str(i), "") for i in range(9)] + [("b", "", "")]
    assert {asked for asked, *_ in spread(pairs, 2, Random(0))} == {"a", "b"}
