"""Answers in the making: checked at every window, ended at the first harm, resumed after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mmguard import drive, guard, wrap
from mmguard.asks import Read
from mmguard.case import Case
from mmguard.errors import PolicyError, StepError
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.policy import Policy, load_policy
from mmguard.runtime import Concurrent
from mmguard.types import AnyRequest, Guarded, Reply, Sample
from tests.chats import adapt, caught
from tests.world import BAD, ask, harm, harm_detector, make_policy, make_world, words

FINE = "One fine sentence. Another fine one. "
HARM = f"{FINE}Then {BAD} advice comes. It goes on and on."
EARLY = {"stream": {"window": 10}, "repair": ["rewrite"]}
WINDOW = {"mode": "window", "window": 10, "hold": 5}
RESUMED = {"stream": {**WINDOW, "after": ["resume"]}, "refusals": {"cut": "<cut>"}}
ROUND = {"resume": "{query}|{answer}|{principles}"}


class Slow(ScriptedModel):
    """Streams its first answer in given pieces, and counts those that were read."""

    def __init__(self, *pieces: str, rest: str = "and all was well.") -> None:
        super().__init__(lambda r: "".join(pieces) if r == ask() else rest)
        self.pieces, self.read = pieces, 0

    def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
        if request != ask():
            yield from super().stream(request)
            return
        for piece in self.pieces:
            self.read += 1
            yield piece
        yield self.answer(request)


def listen(target: ScriptedModel, policy: Policy, **world: Any) -> tuple[list[str], Guarded]:
    bound, runtime = make_world(policy, target=target, **world)
    flow, out = drive.stream(guard(ask(), bound, stream=True), runtime), list[str]()
    while True:
        try:
            out.append(next(flow))
        except StopIteration as stop:
            return out, stop.value


# -- early ends ---------------------------------------------------------------


def test_a_harmful_answer_is_not_made_to_its_end() -> None:
    target = Slow(*HARM)
    policy, runtime = make_world(make_policy(**EARLY), target=target)
    guarded = drive.run(guard(ask(), policy), runtime)
    assert (guarded.action, guarded.step) == ("repair", "rewrite")
    assert guarded.draft is not None
    assert guarded.draft.text == HARM[:50]
    assert guarded.draft.finish == "cut"
    assert target.read == 50 < len(HARM)


def test_a_harmless_answer_is_made_to_its_end() -> None:
    policy, runtime = make_world(make_policy(**EARLY), target=Slow(*FINE))
    guarded = drive.run(guard(ask(), policy), runtime)
    assert (guarded.text, guarded.action) == (FINE, "pass")
    assert [finding.stage for finding in guarded.trail] == ["output"]


def test_no_judge_is_asked_in_mid_answer() -> None:
    target = Slow(*FINE, rest="no")
    policy = make_policy(
        output=[{"detector": "self"}, {"detector": "harm", "strictness": 0.9, "grey": 0.05}],
        judge={"model": "target"},
        **EARLY,
    )
    bound, runtime = make_world(policy, target=target)
    drive.run(guard(ask(), bound), runtime)
    # The draft, the model's own opinion, and one about the grey score.
    assert len(target.seen) == 3


@pytest.mark.parametrize("fields", [{"mode": "audit"}, {"mode": "off", "output": []}])
def test_who_enforces_nothing_ends_nothing(fields: dict[str, Any]) -> None:
    policy, runtime = make_world(make_policy(**{**EARLY, **fields}), target=Slow(*HARM))
    guarded = drive.run(guard(ask(), policy), runtime)
    assert (guarded.text, guarded.action) == (HARM, "pass")


def test_a_detector_that_breaks_in_mid_answer_ends_it() -> None:
    def broken(sample: Sample) -> Any:
        return 0.1 if sample.chars < 20 else float("nan")

    detector = ScriptedDetector(broken, name="harm")
    policy, runtime = make_world(make_policy(**EARLY), target=Slow(*FINE), detectors=[detector])
    guarded = drive.run(guard(ask(), policy), runtime)
    assert guarded.action == "block"
    assert guarded.trail[0].stage == "stream"
    assert "nan" in guarded.trail[0].error


def test_a_server_is_asked_for_whole_replies() -> None:
    class Remote(Slow):
        async def agenerate(self, request: AnyRequest) -> Reply:
            return self.answer(request)

        async def astream(self, request: AnyRequest) -> Any:
            for piece in self.stream(request):
                yield piece

    target = Remote(*HARM)
    guarded = wrap(target, policy=make_policy(**EARLY), detectors={"harm": harm_detector()}).chat(
        [{"role": "user", "content": "what is this?"}]
    )
    assert target.read == 0
    assert guarded.draft is not None
    assert guarded.draft.text == HARM[:50]


def test_a_model_in_this_process_stops_at_the_harm() -> None:
    detector = ScriptedDetector(lambda s: 0.9 if len(s.reply or "") > 40 else 0.1, name="harm")
    policy = make_policy(stream={"window": 20}, output=[{"detector": "harm", "action": "block"}])
    model = adapt()
    with caught(model.model) as calls:
        guarded = wrap(model, policy=policy, detectors={"harm": detector}).chat(
            [{"role": "user", "content": "what is this?"}], max_tokens=2000
        )
    assert guarded.action == "block"
    assert guarded.draft is not None
    assert len(guarded.draft.text) == 60
    assert len(calls) < 200


def test_a_stopped_model_is_free_for_the_repair() -> None:
    detector = ScriptedDetector(lambda s: 0.9 if len(s.reply or "") > 40 else 0.1, name="harm")
    fields = {"stream": {"window": 20}, "repair": ["resample"], "resample": {"tries": 1}}
    model = adapt()
    with caught(model.model) as calls:
        guarded = wrap(model, policy=make_policy(**fields), detectors={"harm": detector}).chat(
            [{"role": "user", "content": "what is this?"}], max_tokens=600
        )
    assert [call.stage for call in guarded.calls] == ["draft", "resample"]
    assert len(calls) < 800


@given(st.data(), st.integers(1, 30), st.sampled_from(["early", "window", "resume"]))
def test_how_text_comes_changes_nothing(data: Any, window: int, kind: str) -> None:
    """The result is one of the text, not of the pieces in which it came."""
    how: dict[str, Any] = {"window": window} if kind == "early" else {**WINDOW, "window": window}
    if kind == "resume":
        how["after"] = ["resume"]
    policy = make_policy(stream=how, repair=["rewrite"])
    text = data.draw(st.text(f"{BAD}AB .", max_size=60)) + data.draw(st.sampled_from(["", BAD]))
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=9)) | {0, len(text)})
    pieces = [text[i:j] for i, j in pairwise(ends)]
    split, whole = listen(Slow(*pieces), policy), listen(Slow(text), policy)
    assert ("".join(split[0]), split[1]) == ("".join(whole[0]), whole[1])
    bound, runtime = make_world(policy, target=Slow(*pieces))
    alone = drive.run(guard(ask(), bound), runtime)
    if kind == "early":
        assert alone == split[1]
    assert asyncio.run(drive.arun(guard(ask(), bound), Concurrent(runtime))) == alone


# -- after a release ----------------------------------------------------------


def test_what_has_left_is_resumed() -> None:
    pieces, guarded = listen(Slow(*HARM), make_policy(**RESUMED))
    assert guarded.text == f"{FINE}and all was well."
    assert "".join(pieces) == guarded.text
    assert (guarded.action, guarded.step, guarded.finish) == ("repair", "resume", "stop")
    assert [call.stage for call in guarded.calls] == ["draft", "resume"]


def test_who_resumes_reads_question_beginning_and_principles() -> None:
    target = Slow(*HARM)
    listen(target, make_policy(**RESUMED, prompts=ROUND, principles=["Be kind."]))
    assert words(target.seen[-1]) == f"what is this?|{FINE}|- Be kind."


def test_a_beginning_that_is_said_again_is_said_once() -> None:
    _, guarded = listen(Slow(*HARM, rest=f"{FINE}The end."), make_policy(**RESUMED))
    assert guarded.text == f"{FINE}The end."


@pytest.mark.parametrize(
    ("rest", "why"), [("", "nothing came after"), (f"more {BAD}", None), (" ", "nothing came")]
)
def test_what_cannot_be_resumed_is_cut(rest: str, why: str | None) -> None:
    pieces, guarded = listen(Slow(*HARM, rest=rest), make_policy(**RESUMED))
    assert (guarded.action, guarded.step) == ("block", "cut")
    assert guarded.text == "".join(pieces) == f"{FINE[:35]}<cut>"
    if why:
        assert why in guarded.trail[-1].reason


def test_a_draft_is_resumed_before_anything_left() -> None:
    policy, runtime = make_world(make_policy(repair=["resume"]), target=Slow(HARM))
    guarded = drive.run(guard(ask(), policy), runtime)
    assert (guarded.text, guarded.step) == (f"{FINE}and all was well.", "resume")


def test_a_draft_that_begins_with_harm_is_not_resumed() -> None:
    policy, runtime = make_world(make_policy(repair=["resume"]), target=Slow(f"{BAD}. Fine."))
    guarded = drive.run(guard(ask(), policy), runtime)
    assert guarded.action == "block"
    assert "no harmless beginning" in guarded.trail[-1].reason


def test_one_long_sentence_is_resumed_in_its_middle() -> None:
    endless = "so we go on and on and on " + BAD
    _, guarded = listen(Slow(*endless), make_policy(**RESUMED))
    assert guarded.text == "so we go on and and all was well."


JOINTS = [
    ("a ", "b", "a b"),
    ("a ", " b", "a b"),
    ("a\n", "\nb", "a\n\nb"),
    ("a", "b", "a b"),
    ("a", ", b", "a, b"),
    ("a", "\n- b", "a\n- b"),
]


@pytest.mark.parametrize(("kept", "rest", "text"), JOINTS)
def test_joints(kept: str, rest: str, text: str) -> None:
    from mmguard.steps import join

    assert join(kept, rest) == text


# -- repairs in the making ----------------------------------------------------


MENDED = {"stream": WINDOW, "repair": ["detoxify", "rewrite"], "refusals": {"cut": "<cut>"}}


def test_a_repaired_answer_streams() -> None:
    pieces, guarded = listen(Slow(BAD * 9, rest=FINE), make_policy(**MENDED))
    assert (guarded.text, guarded.step) == (FINE, "detoxify")
    assert len(pieces) > 2


def test_a_repaired_answer_that_turns_harmful_is_cut() -> None:
    pieces, guarded = listen(Slow(BAD * 9, rest=HARM), make_policy(**MENDED))
    assert (guarded.action, guarded.step) == ("block", "cut")
    assert "".join(pieces) == guarded.text == f"{FINE[:35]}<cut>"
    assert [call.stage for call in guarded.calls] == ["draft", "detoxify"]


def test_a_repaired_answer_that_turns_harmful_is_resumed() -> None:
    def script(request: AnyRequest) -> str:
        if "already read the beginning" in words(request):
            return "The end."
        return BAD * 9 if request == ask() else HARM

    policy = make_policy(**{**MENDED, "stream": {**WINDOW, "after": ["resume"]}})
    pieces, guarded = listen(ScriptedModel(script), policy)
    assert "".join(pieces) == guarded.text == f"{FINE}The end."
    assert guarded.step == "resume"


def test_a_repaired_answer_that_breaks_off_is_cut() -> None:
    class Short(Slow):
        def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
            return super().stream(request) if request == ask() else iter([FINE])

    _, guarded = listen(Short(BAD * 9), make_policy(**MENDED))
    assert guarded.text == f"{FINE[:25]}<cut>"
    assert "ended without its reply" in guarded.trail[-1].error


def test_a_repaired_answer_in_buffer_mode_comes_whole() -> None:
    pieces, guarded = listen(Slow(BAD * 9, rest=FINE), make_policy(**EARLY))
    assert pieces == [FINE]
    assert guarded.step == "rewrite"


def test_under_a_deadline_a_repaired_answer_comes_whole() -> None:
    pieces, guarded = listen(Slow(BAD * 9, rest=FINE), make_policy(**MENDED, deadline=60))
    assert pieces == [FINE]
    assert guarded.step == "detoxify"


def test_another_model_may_stream_a_repair() -> None:
    editor = ScriptedModel(lambda request: FINE, piece=3)
    policy = make_policy(**MENDED, detoxify={"model": "editor"})
    pieces, guarded = listen(Slow(BAD * 9), policy, models={"editor": editor})
    assert guarded.text == "".join(pieces) == FINE
    assert guarded.calls[-1].model == "editor"


def test_a_stream_read_to_its_end_may_be_read_again() -> None:
    def twice() -> Any:
        for _ in range(2):
            while isinstance(piece := (yield Read("target", ask())), str):
                texts.append(piece)

    texts = list[str]()
    _, runtime = make_world(target=Slow("a", "b"))
    drive.run(twice(), runtime)
    assert texts == ["a", "b", "a", "b"]
    asyncio.run(drive.arun(twice(), Concurrent(runtime)))
    assert "".join(texts) == "ab" * 4


def test_another_step_cannot_take_back_what_has_left() -> None:
    policy = load_policy({"output": [{"detector": "harm"}], "stream": RESUMED["stream"]})
    assert policy.stream.after == ("resume",)
    with pytest.raises(PolicyError, match="after"):
        make_policy(stream={**WINDOW, "after": ["rewrite"]})
    with pytest.raises(PolicyError, match="needs mode: window"):
        make_policy(stream={"after": ["resume"]})


@given(st.lists(st.text(f"{BAD} .abc", max_size=20), max_size=8), st.text("abD. ", max_size=12))
def test_what_is_resumed_has_passed(pieces: list[str], rest: str) -> None:
    """Rules 1 and 3: what left stays the beginning, and the whole of it passes the checks."""
    out, guarded = listen(Slow(*pieces, rest=rest), make_policy(**RESUMED))
    assert "".join(out) == guarded.text
    if guarded.step == "resume":
        assert harm(Sample(ask(), guarded.text)).score < 0.5


def test_no_step_replaces_what_has_left() -> None:
    case = Case(ask(), make_policy(), text="It is fine.", released=5)
    with pytest.raises(StepError, match="than what has left"):
        case.offer(Reply("Another answer."))
    case.offer(Reply("It is another answer."))
    assert case.text == "It is another answer."
