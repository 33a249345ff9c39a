"""The published pipelines as presets: their mechanism, limits included."""

from __future__ import annotations

import pytest

from mmguard import guard, wrap
from mmguard.drive import run
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.policy import load_policy
from mmguard.types import (
    AnyRequest,
)
from tests.test_steps import Script, chat, looks, writes
from tests.world import (
    BAD,
    ask,
    harm,
    make_world,
    words,
)


def judged(says: str) -> Script:
    def script(request: AnyRequest) -> str:
        if "yes or no" in words(request):
            return says if BAD in words(request) else "No."
        return looks("a sign")(request)  # type: ignore[return-value]  # a string

    return script


@pytest.mark.parametrize(("says", "action"), [("Yes.", "repair"), ("Yes, it is.", "pass")])
def test_ecso_takes_a_bare_word(says: str, action: str) -> None:
    guarded = chat(judged(says), policy=load_policy("ecso"))
    assert (guarded.action, guarded.trail[0].reason) == (action, "bare word")
    assert guarded.closed == (action == "repair")


def test_ecso_sees_only_the_beginning() -> None:
    late = "." * 1927 + BAD
    guarded = chat(lambda r: "yes" if BAD in words(r) else late, policy=load_policy("ecso"))
    assert guarded.action == "pass"


def test_protector_sees_the_answer_alone() -> None:
    detector = ScriptedDetector(harm, name="response-harm")
    target = ScriptedModel(writes)
    policy, runtime = make_world(load_policy("protector"), target=target, detectors=[detector])
    guarded = run(guard(ask("a telling question"), policy), runtime)
    assert (guarded.action, guarded.step) == ("repair", "detoxify")
    assert all(not sample.request.text for sample in detector.seen)
    assert "telling" not in words(target.seen[-1])


@pytest.mark.parametrize(("trigger", "chances"), [("word", False), ("chance", True)])
def test_a_judge_read_by_its_words_is_not_asked_for_chances(trigger: str, chances: bool) -> None:
    """Asked for chances, a model in this process stops at its first word."""
    judge = ScriptedModel(lambda request: "no")
    policy = {
        "judge": {"model": "target", "trigger": trigger},
        "output": [{"detector": "judge"}],
    }
    wrap(judge, policy=policy).chat("hello")
    assert ("logprobs" in judge.seen[-1].options) == chances
