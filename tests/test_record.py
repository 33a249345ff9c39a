"""The audit line: complete, JSON, and silent about what anybody said."""

from __future__ import annotations

import json

from hypothesis import given, strategies as st

from mmguard import guard, record
from mmguard.drive import run
from mmguard.models.scripted import ScriptedModel
from tests.world import BAD, SEEN, ask, make_world


def test_no_words_unless_asked() -> None:
    policy, runtime = make_world()
    guarded = run(guard(SEEN, policy), runtime)
    line = json.dumps(record(guarded))
    assert BAD not in line
    assert "harmless answer" not in line
    told = record(guarded, texts=True)
    assert told["calls"][0]["reply"]["text"].startswith(BAD)
    assert told["answer"]["text"] == guarded.text


def test_what_it_holds() -> None:
    policy, runtime = make_world()
    line = record(run(guard(SEEN, policy), runtime))
    assert (line["action"], line["step"], line["policy"]) == ("repair", "caption", policy.tag)
    assert line["usage"] == {"prompt": 7, "completion": 11, "cached": 0}
    assert [f["stage"] for f in line["trail"]] == ["output", "caption"]
    assert line["trail"][0]["threshold"] == 0.5
    assert line["coverage"]["images_total"] == 1


@given(st.text())
def test_any_text_makes_a_line(text: str) -> None:
    policy, runtime = make_world(target=ScriptedModel(lambda request: text))
    json.dumps(record(run(guard(ask(), policy), runtime), texts=True))
