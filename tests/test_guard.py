"""The flow by hand and through the sketchiest of worlds: every branch of `guard.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmguard import guard
from mmguard.asks import Emit, Generate, Together
from mmguard.drive import run, stream
from mmguard.errors import DetectorError, ModelError
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.policy import Policy
from mmguard.types import AnyRequest, Finding, Guarded, Reply, Request, TextRequest
from tests.world import (
    BAD,
    SEEN,
    UNREADABLE,
    ask,
    harm_detector,
    make_policy,
    make_world,
    tempted,
    words,
)


def chat(request: Request = SEEN, policy: Policy | None = None, **world: Any) -> Guarded:
    bound, runtime = make_world(policy, **world)
    return run(guard(request, bound), runtime)


def listen(request: Request, policy: Policy, **world: Any) -> tuple[list[str], Guarded]:
    bound, runtime = make_world(policy, **world)
    flow, pieces = stream(guard(request, bound, stream=True), runtime), list[str]()
    while True:
        try:
            pieces.append(next(flow))
        except StopIteration as stop:
            return pieces, stop.value


def says(*texts: str) -> ScriptedModel:
    """A model that says these in turn, the last one for ever."""
    left = list(texts)
    return ScriptedModel(lambda request: left.pop(0) if len(left) > 1 else left[0])


def test_by_hand() -> None:
    policy, _ = make_world()
    flow = guard(ask("hello"), policy)
    assert flow.send(None) == Generate("target", ask("hello"))
    checks = flow.send(Reply("hi there"))
    assert isinstance(checks, Together)
    assert flow.send([Finding("harm", 0.1)]) == Emit("hi there")
    with pytest.raises(StopIteration) as stop:
        flow.send(None)
    assert stop.value.value.text == "hi there"


def test_pass() -> None:
    guarded = chat(ask("hello"))
    assert (guarded.text, guarded.action, guarded.step) == ("a harmless answer", "pass", "answer")
    assert guarded.draft == Reply("a harmless answer", usage=guarded.usage)
    assert guarded.trail[0].threshold == 0.5


def test_caption_repairs() -> None:
    guarded = chat()
    assert (guarded.text, guarded.action, guarded.step) == (
        "a harmless answer",
        "repair",
        "caption",
    )
    assert guarded.closed
    assert [call.stage for call in guarded.calls] == ["draft", "caption", "closed"]
    assert [f.stage for f in guarded.trail] == ["output", "caption"]
    assert guarded.usage.completion == 11


def test_eyes_closed_by_type() -> None:
    target = ScriptedModel(tempted)
    chat(target=target)
    assert isinstance(target.seen[-1], TextRequest)
    assert "a red square" in words(target.seen[-1])


def test_text_only_skips_caption() -> None:
    target = ScriptedModel(lambda r: "mended" if "anew" in words(r) else BAD)
    guarded = chat(ask("hello"), target=target)
    assert (guarded.text, guarded.step, guarded.closed) == ("mended", "rewrite", False)
    assert (guarded.trail[1].label, guarded.trail[1].reason) == (
        "skipped",
        "the request has no picture",
    )


def worse(request: AnyRequest) -> str:
    return f"{BAD}, and {len(words(request))} words on"


def test_repairs_are_judged() -> None:
    target = ScriptedModel(lambda r: "a red square" if "Do not answer it" in words(r) else worse(r))
    guarded = chat(target=target, policy=make_policy(refusals={"hate": "No hate."}))
    assert (guarded.text, guarded.action, guarded.step) == ("No hate.", "block", "output")
    assert [f.stage for f in guarded.trail] == ["output", "caption", "rewrite"]
    assert {f.action for f in guarded.trail} == {"repair"}
    assert guarded.finish == "content_filter"
    assert not guarded.closed


def test_resample_has_its_tries() -> None:
    policy = make_policy(repair=["resample"], resample={"tries": 4})
    target = says(BAD, BAD, BAD, "fine")
    guarded = chat(ask("hello", do_sample=False), policy, target=target)
    assert (guarded.text, guarded.step) == ("fine", "resample")
    seeds = [request.options.get("seed") for request in target.seen]
    assert seeds == [None, 1, 2, 3]
    assert "do_sample" not in target.seen[1].options


def test_failing_step_is_passed_over() -> None:
    def script(request: AnyRequest) -> str:
        if isinstance(request, TextRequest) and "cannot see" in words(request):
            raise ModelError("this model takes no words without a picture")
        if "Do not answer it" in words(request):
            return "a red square"
        return "mended" if "anew" in words(request) else BAD

    guarded = chat(target=ScriptedModel(script))
    assert (guarded.text, guarded.step) == ("mended", "rewrite")
    assert "takes no words" in guarded.trail[1].error


def test_empty_repair_is_no_repair() -> None:
    target = ScriptedModel(lambda r: "  " if "anew" in words(r) else BAD)
    guarded = chat(ask("hello"), target=target)
    assert guarded.action == "block"
    assert "answered nothing" in guarded.trail[-1].reason


def test_target_failure_is_the_callers() -> None:
    def script(request: AnyRequest) -> str:
        raise ModelError("out of order", status=503, body=b"{}")

    with pytest.raises(ModelError) as caught:
        chat(target=ScriptedModel(script))
    assert (caught.value.status, caught.value.body) == (503, b"{}")


def test_input_block_asks_no_model() -> None:
    target = ScriptedModel(tempted)
    policy = make_policy(input=[{"detector": "harm", "action": "block"}])
    guarded = chat(ask(f"{BAD} question"), policy, target=target)
    assert (guarded.action, guarded.step, guarded.draft) == ("block", "input", None)
    assert target.seen == []


def test_input_repair_never_answers_with_the_picture() -> None:
    target = ScriptedModel(lambda r: "fine")
    policy = make_policy(input=[{"detector": "harm"}], repair=["detoxify", "resample", "caption"])
    request = ask(f"{BAD} question", *SEEN.images)
    guarded = chat(request, policy, target=target)
    assert (guarded.action, guarded.step, guarded.closed) == ("repair", "caption", True)
    assert [call.stage for call in guarded.calls] == ["caption", "closed"]


def test_unreadable() -> None:
    guarded = chat(UNREADABLE)
    assert (guarded.action, guarded.step, guarded.coverage.opaque) == ("block", "input", 1)
    assert "audio" in guarded.trail[0].reason
    assert chat(UNREADABLE, make_policy(unreadable="pass")).action == "pass"


def test_audit_changes_nothing() -> None:
    guarded = chat(policy=make_policy(mode="audit"))
    assert guarded.text.startswith(BAD)
    assert (guarded.action, guarded.decision) == ("pass", "repair")
    blocked = chat(UNREADABLE, make_policy(mode="audit"))
    assert (blocked.action, blocked.decision) == ("pass", "block")


def test_audit_streams_at_once() -> None:
    pieces, guarded = listen(SEEN, make_policy(mode="audit"))
    assert len(pieces) > 1
    assert guarded.decision == "repair"


def test_off() -> None:
    policy = make_policy(output=[], mode="off", repair=[])
    assert chat(UNREADABLE, policy).action == "pass"
    pieces, guarded = listen(SEEN, policy)
    assert "".join(pieces) == guarded.text == f"{BAD} advice, in full"
    assert guarded.trail == ()


def test_empty_answer_passes_whole() -> None:
    pieces, guarded = listen(ask(), make_policy(), target=says(""))
    assert (pieces, guarded.text, guarded.action) == ([], "", "pass")


BROKEN: list[Callable[..., Any]] = [
    lambda sample: Finding("harm", float("nan")),
    lambda sample: Finding("harm", 1.5),
    lambda sample: Finding("harm", 0.0, error="no weights"),
    lambda sample: 1 / 0,
    lambda sample: "safe",
]


@pytest.mark.parametrize("script", BROKEN)
def test_broken_detector_blocks(script: Callable[..., Any]) -> None:
    detector = ScriptedDetector(script, name="harm", thresholds={"medium": 0.5})
    guarded = chat(ask("hello"), detectors=[detector])
    assert (guarded.action, guarded.trail[0].label) == ("block", "error")
    assert guarded.trail[0].error


def test_on_error_of_check_and_policy() -> None:
    detector = ScriptedDetector(lambda s: float("nan"), name="harm", thresholds={"medium": 0.5})
    opened = make_policy(on_error="pass")
    assert chat(ask("hello"), opened, detectors=[detector]).action == "pass"
    stricter = make_policy(on_error="pass", output=[{"detector": "harm", "on_error": "block"}])
    assert chat(ask("hello"), stricter, detectors=[detector]).action == "block"


def test_driver_that_loses_findings() -> None:
    policy, _ = make_world()
    flow = guard(ask("hello"), policy)
    flow.send(None)
    flow.send(Reply("hi"))
    refusal = flow.send([])
    assert isinstance(refusal, Emit)
    assert refusal.text != "hi"


def test_block_settles_the_rest() -> None:
    late = ScriptedDetector(lambda s: 0.9, name="late")
    policy = make_policy(output=[{"detector": "harm", "action": "block"}, {"detector": "late"}])
    guarded = chat(policy=policy, detectors=[harm_detector(), late])
    assert [f.detector for f in guarded.trail] == ["harm"]
    assert late.seen == []


def judged(first: dict[str, float], text: str = "") -> Callable[[AnyRequest], str | Reply]:
    def script(request: AnyRequest) -> str | Reply:
        if "one word, yes or no" in words(request):
            return Reply(text, first=first)
        return tempted(request)

    return script


GREY = [{"detector": "harm", "strictness": 0.95, "grey": 0.5}]


@pytest.mark.parametrize(("yes", "action"), [(0.9, "repair"), (0.2, "pass")])
def test_grey_asks_the_judge(yes: float, action: str) -> None:
    policy = make_policy(output=GREY, judge={"model": "target"}, repair=["detoxify"])
    target = ScriptedModel(judged({"Yes": yes, " no": 1 - yes}))
    guarded = chat(SEEN, policy, target=target)
    assert guarded.action == action
    assert guarded.trail[1].detector == "judge"
    assert guarded.trail[1].score == pytest.approx(yes)
    assert target.seen[1].images == SEEN.images


def test_judge_is_asked_only_in_the_grey() -> None:
    policy = make_policy(output=GREY, judge={"model": "target"})
    target = ScriptedModel(judged({}))
    assert chat(ask("hello"), policy, target=target).action == "pass"
    assert len(target.seen) == 1


def test_judge_as_first_check_without_picture() -> None:
    policy = make_policy(
        output=[{"detector": "judge", "action": "block"}],
        judge={"model": "target", "image": False},
    )
    target = ScriptedModel(judged({}, "Yes, it is."))
    guarded = chat(SEEN, policy, target=target)
    assert (guarded.action, guarded.trail[0].reason) == ("block", "words")
    assert isinstance(target.seen[1], TextRequest)


@pytest.mark.parametrize(("yes", "action"), [(0.9, "block"), (0.2, "pass")])
def test_self_asks_the_target(yes: float, action: str) -> None:
    policy = make_policy(output=[{"detector": "self"}], repair=["detoxify"])
    target = ScriptedModel(judged({"Yes": yes, "No": 1 - yes}))
    guarded = chat(SEEN, policy, target=target)
    assert guarded.action == action
    assert guarded.trail[0].detector == "self"
    assert guarded.trail[0].score == pytest.approx(yes)
    assert target.seen[1].images == SEEN.images


def test_unparsed_self_is_an_error() -> None:
    policy = make_policy(output=[{"detector": "self"}])
    guarded = chat(SEEN, policy, target=ScriptedModel(judged({}, "Well, perhaps.")))
    assert guarded.action == "block"
    assert "neither yes nor no" in guarded.trail[0].error


def test_unparsed_judge_is_an_error() -> None:
    policy = make_policy(output=[{"detector": "judge"}], judge={"model": "target"})
    guarded = chat(SEEN, policy, target=ScriptedModel(judged({}, "Well, perhaps.")))
    assert guarded.action == "block"
    assert "neither yes nor no" in guarded.trail[0].error


WINDOW = {"mode": "window", "window": 8, "hold": 4}


def test_window_cuts_after_release() -> None:
    policy = make_policy(stream=WINDOW, refusals={"cut": " [cut]"})
    pieces, guarded = listen(ask(), policy, target=says("a fine beginning and then BAD things"))
    assert "".join(pieces) == guarded.text
    assert guarded.text.startswith("a fine")
    assert guarded.text.endswith(" [cut]")
    assert BAD not in guarded.text
    assert (guarded.action, guarded.step, guarded.finish) == ("block", "cut", "content_filter")


def test_window_repairs_before_release() -> None:
    pieces, guarded = listen(SEEN, make_policy(stream=WINDOW))
    assert len(pieces) > 1
    assert "".join(pieces) == guarded.text == "a harmless answer"
    assert (guarded.action, guarded.step) == ("repair", "caption")


def test_window_passes_in_pieces() -> None:
    text = "a long and harmless answer in many words"
    pieces, guarded = listen(ask(), make_policy(stream=WINDOW), target=says(text))
    assert len(pieces) > 2
    assert "".join(pieces) == guarded.text == text
    assert [f.stage for f in guarded.trail] == ["output"]


def test_broken_stream_raises() -> None:
    class Short(ScriptedModel):
        def stream(self, request: AnyRequest) -> Any:
            yield "half an ans"

    with pytest.raises(ModelError, match="ended without"):
        listen(ask(), make_policy(), target=Short())


def test_category_rules() -> None:
    check = {"detector": "harm", "categories": {"hate": {"strictness": 0.95, "action": "block"}}}
    assert chat(SEEN, make_policy(output=[check])).action == "pass"
    check["categories"]["hate"]["strictness"] = 0.5  # type: ignore[index]  # a literal above
    assert chat(SEEN, make_policy(output=[check])).action == "block"


def test_detector_error_keeps_its_words() -> None:
    def script(sample: Any) -> float:
        raise DetectorError("the detector is out")

    guarded = chat(
        ask(), detectors=[ScriptedDetector(script, name="harm", thresholds={"medium": 0.5})]
    )
    assert "the detector is out" in guarded.trail[0].error
