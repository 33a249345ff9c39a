"""Excise: harmful sentences cut out of a mostly harmless answer, with no model at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mmguard import guard
from mmguard.asks import Answer, Emit, Together
from mmguard.drive import run, run_many, stream
from mmguard.errors import DetectorError
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.types import (
    Finding,
    Guarded,
    Reply,
    Request,
    Sample,
)
from tests.test_steps import chat, told
from tests.world import (
    BAD,
    ask,
    harm,
    make_policy,
    make_world,
)

ANSWER = f"Wash it first.\n\n1. Use warm water.\n2. {BAD} things go here.\n3. Dry it."


def excised(text: str = ANSWER, request: Request | None = None, **fields: Any) -> Guarded:
    policy = make_policy(repair=["excise"], **fields)
    return chat(lambda r: text, request or ask(), policy)


def test_excise() -> None:
    guarded = excised()
    assert (guarded.action, guarded.step) == ("repair", "excise")
    assert guarded.text == "Wash it first.\n\n1. Use warm water.\n2. Dry it."
    assert len(guarded.calls) == 1
    found = guarded.trail[1]
    assert (found.detector, found.stage, found.label) == ("harm", "excise", "cut")
    assert (found.score, found.action, found.reason) == (0.9, "repair", "38:57 severe")
    assert ANSWER[38:57] == f"{BAD} things go here."


def test_excise_marks_the_gap() -> None:
    assert "\n2. [left out]\n3. Dry it." in excised(excise={"mark": "[left out]"}).text


def test_excise_cuts_all_that_harm_alone() -> None:
    text = f"One fine thing. {BAD} one. Another fine thing. {BAD} two. And a third."
    assert excised(text).text == "One fine thing. Another fine thing. And a third."


def together(sample: Sample) -> float:
    """Harm that only several sentences make."""
    reply = sample.reply or ""
    return min(1.0, 0.2 * reply.count("part") + 0.1 * reply.count("Third"))


def test_excise_cuts_more_where_the_rest_still_harms() -> None:
    detector = ScriptedDetector(together, name="harm", thresholds={"medium": 0.5})
    text = "First part. Second part. Third part. And a long and harmless end to it."
    for margin, rest in ((0, "First part. Second part. And"), (0.5, "Second part. And")):
        fields = {"repair": ["excise"], "excise": {"margin": margin, "most": 0.7}}
        policy, runtime = make_world(
            make_policy(**fields), target=ScriptedModel(lambda r: text), detectors=[detector]
        )
        guarded = run(guard(ask(), policy), runtime)
        assert guarded.text.startswith(rest)
        assert guarded.trail[1].reason.endswith("minor")


def diluted(sample: Sample) -> float:
    """Harm that one harmful sentence makes by itself, but not among harmless ones."""
    reply = sample.reply or ""
    return min(1.0, 10 * reply.count(BAD) / len(reply))


def test_what_harms_alone_is_cut_even_if_the_rest_would_pass() -> None:
    detector = ScriptedDetector(diluted, name="harm", thresholds={"medium": 0.2})
    target = ScriptedModel(
        lambda r: (
            f"A fine and long sentence stands here, and goes on a little. {BAD} one. {BAD} two."
        )
    )
    fields = {"repair": ["excise"], "excise": {"margin": 0}}
    policy, runtime = make_world(make_policy(**fields), target=target, detectors=[detector])
    assert BAD not in run(guard(ask(), policy), runtime).text


NOT_EXCISED = {
    "mostly harmful": f"{BAD} things that go on and on. Bye.",
    "only a heading left": f"# A heading of a certain length\n\n{BAD}.",
    "one sentence": BAD,
}


@pytest.mark.parametrize("text", NOT_EXCISED.values(), ids=NOT_EXCISED)
def test_nothing_useful_remains(text: str) -> None:
    guarded = excised(text)
    assert guarded.action == "block"
    assert "too little would remain" in told(guarded, "excise")


def test_excise_needs_a_draft_and_a_detector() -> None:
    asked = [{"detector": "harm"}]
    guarded = excised(request=ask(f"{BAD} question"), input=asked)
    assert told(guarded, "excise") == "there is no draft"
    policy = make_policy(output=[{"detector": "self"}], repair=["excise"])
    guarded = chat(lambda r: "yes", policy=policy)
    assert "no detector that could look" in told(guarded, "excise")


def test_excise_needs_the_whole_draft() -> None:
    how = {"mode": "window", "window": 4, "hold": 4}
    target = ScriptedModel(lambda r: f"{BAD}. Fine.")
    policy, runtime = make_world(make_policy(repair=["excise"], stream=how), target=target)
    flow = stream(guard(ask(), policy, stream=True), runtime)
    assert next(flow) == policy.refusal("")
    with pytest.raises(StopIteration) as stop:
        next(flow)
    assert "cut off in mid-stream" in told(stop.value.value, "excise")


def test_a_failing_detector_cuts_everything() -> None:
    """What cannot be scored is not kept."""
    draft = ANSWER

    def script(sample: Sample) -> Finding:
        if sample.reply != draft:
            raise DetectorError("out")
        return harm(sample)

    detector = ScriptedDetector(script, name="harm", thresholds={"medium": 0.5})
    policy, runtime = make_world(
        make_policy(repair=["excise"]), target=ScriptedModel(lambda r: draft), detectors=[detector]
    )
    guarded = run(guard(ask(), policy), runtime)
    assert guarded.action == "block"
    assert "too little" in told(guarded, "excise")


def test_sentences_are_scored_together() -> None:
    class Counting(ScriptedDetector):
        batches: list[int]

        def score(self, samples: Any) -> list[Finding]:
            self.batches.append(len(samples))
            return super().score(samples)

    detector = Counting(harm, name="harm", thresholds={"medium": 0.5})
    detector.batches = []
    policy, runtime = make_world(
        make_policy(repair=["excise"]), target=ScriptedModel(lambda r: ANSWER), detectors=[detector]
    )
    run(guard(ask(), policy), runtime)
    assert detector.batches == [1, 4, 1, 1]
    detector.batches = []
    results = run_many([guard(ask(), policy) for _ in range(3)], runtime)
    assert all(isinstance(r, Guarded) and r.step == "excise" for r in results)
    assert detector.batches == [3, 12, 3, 3]


def test_a_driver_that_loses_findings() -> None:
    policy, _ = make_world(make_policy(repair=["excise"]))
    flow = guard(ask(), policy)
    flow.send(None)
    flow.send(Reply(ANSWER))
    sentences = flow.send([Finding("harm", 0.9)])
    assert isinstance(sentences, Together)
    answers: list[Answer] = [Finding("harm", 0.1)]
    refusal = flow.send(answers)
    assert isinstance(refusal, Emit)
    with pytest.raises(StopIteration) as stop:
        flow.send(None)
    assert "lost findings" in told(stop.value.value, "excise")


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["Fine. ", f"{BAD} so. ", "\n- ", "\n\n", "Well: ", "好。"]), max_size=12
    )
)
def test_what_is_excised_leaves_no_harm(pieces: list[str]) -> None:
    text = "".join(pieces)
    guarded = excised(text, excise={"most": 1.0})
    assert BAD not in guarded.text
    if BAD not in text:
        assert guarded.text == text
