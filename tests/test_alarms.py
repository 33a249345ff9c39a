"""Made answers that alarm and mean no harm, and harmful ones that look like them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, strategies as st

from mmguard.train.alarms import (
    SOURCE,
    Stock,
    alarms,
    darken,
    help_out,
    lend,
    plead,
    read_written,
    repeat,
)
from mmguard.train.causes import read_causes
from mmguard.train.mix import Example, examples
from mmguard.train.scenes import read_scenes
from tests.labelled import HARM, make_row

SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def pool() -> list[Example]:
    rows = [make_row(i, True, "gptfuzz_train") for i in range(40)]
    return examples([*rows, *(make_row(i, False, "benign_instruct") for i in range(40))])


@pytest.fixture(scope="module")
def stock(pool: list[Example]) -> Stock:
    return Stock(pool)


@given(SEEDS)
def test_harmless_alarms(stock: Stock, seed: int) -> None:
    for kind in (plead, help_out, lend, repeat):
        found = kind(stock, Random(seed))
        assert (found.answer, found.refusal, found.hazards) == (0.0, 0.0, frozenset())
        assert (found.source, found.request) == (SOURCE, None)
        assert found.prompt
        assert found.reply
        assert not {"{", "}"} & set(found.prompt + found.reply)


@given(SEEDS)
def test_harm_in_the_same_forms(stock: Stock, seed: int) -> None:
    found = darken(stock, Random(seed))
    assert (found.answer, found.source) == (1.0, "gptfuzz_train")
    assert any(text[-30:] in (found.reply or "") for text in HARM)


def test_every_kind_in_proportion(pool: list[Example]) -> None:
    found = alarms(pool, Random(0))
    assert found == alarms(pool, Random(0))
    assert len(found) == 5 * (len(pool) // 16)
    assert [e.answer for e in found].count(1.0) == len(pool) // 16
    assert alarms([e for e in pool if e.answer], Random(0)) == []
    assert alarms([e for e in pool if not e.answer], Random(0)) == []


def test_what_was_written() -> None:
    causes, scenes = read_causes(), read_scenes()
    assert len({cause.harm for cause in causes}) == len(causes) > 40
    assert len({scene.seen for scene in scenes}) == len(scenes) > 100
    assert all(len(scene.advice) == 4 for scene in scenes)
    assert not any(line.endswith(".") for scene in scenes for line in scene.advice)
    assert all(asked and len(reply) > 100 for asked, reply in read_written())
