"""What a model keeps of prompts it has read, when it forgets them, and what that saves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from mmguard import prompts, wrap
from mmguard.errors import ModelError
from mmguard.models import prefix
from mmguard.models.hf import HFModel
from mmguard.models.scripted import ScriptedDetector
from mmguard.types import AnyRequest, Reply
from mmguard.verdict import read_judge
from tests.chats import (
    LONG,
    adapt,
    captioned,
    caught,
    judged,
    outline,
    seen,
    system,
    whole,
)
from tests.parts import EYES, TEXT, place, template, text_config, tf, tokenizer
from tests.tiny import CLIP_TOKENS, IMAGE, Tiny, build


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shared token counts: in tiny models a picture has few."""
    monkeypatch.setattr(prefix, "LEAST", 1)


# -- what is kept -------------------------------------------------------------


def test_one_flow_keeps_one_prompt() -> None:
    model = HFModel(*large())
    for request in (seen(), judged(seen()), captioned(seen()), seen()):
        model.generate([request])
    assert len(model.prefixes.kept) == 1
    assert model.forget() == 1
    assert model.generate([seen()])[0].usage.cached == 0


def test_every_picture_that_was_read_is_kept() -> None:
    model = adapt()
    for which in (0, 1):
        model.generate([system(LONG * 3, seen(which=which))])
    assert len(model.prefixes.kept) == 2
    assert model.generate([system(LONG * 3, seen("And?", 1))])[0].usage.cached > 150


def test_behind_other_words_the_judge_reads_for_the_caption() -> None:
    model, draft = HFModel(*large()), system("Be brief.", seen())
    replies = [model.generate([request])[0] for request in (draft, judged(draft), captioned(draft))]
    assert [reply.usage.cached > 900 for reply in replies] == [False, False, True]


def test_limits() -> None:
    model = adapt()
    for which in range(6):
        model.generate([seen(which=which)])
    assert len(model.prefixes.kept) == 4
    assert model.generate([seen(which=5)])[0].usage.cached > 20
    model.prefixes.room = sum(kept.nbytes for kept in model.prefixes.kept)
    assert model.generate([seen(which=0)])[0].usage.cached < 10
    assert len(model.prefixes.kept) == 4
    model.prefixes.room -= 1
    model.generate([seen(which=1)])
    assert len(model.prefixes.kept) == 3
    model.prefixes.room = 0
    model.generate([seen(which=2)])
    assert model.prefixes.kept == []
    assert whole().generate([seen()])[0].usage.cached == 0


def test_new_weights_forget() -> None:
    tiny = build("llava")
    model = HFModel(copy.deepcopy(tiny.model), tiny.processor)
    first = model.generate([seen()])[0]
    with torch.no_grad():
        next(model.model.model.language_model.parameters()).mul_(-1)
    changed = HFModel(model.model, tiny.processor, reuse=0)
    reply = model.generate([seen()])[0]
    assert reply.tokens == changed.generate([seen()])[0].tokens != first.tokens
    assert reply.usage.cached == 0
    model.model.load_state_dict(tiny.model.state_dict())
    assert model.generate([seen()])[0].tokens == first.tokens
    model.model.to(torch.float64)
    assert model.generate([seen()])[0].usage.cached == 0


def test_another_adapter_forgets() -> None:
    tiny = build("llava")
    model = HFModel(copy.deepcopy(tiny.model), tiny.processor)
    model.generate([seen()])
    assert model.generate([seen()])[0].usage.cached > 0
    model.model.lm_head._disable_adapters = True
    assert model.generate([seen()])[0].usage.cached == 0


def test_training_in_between() -> None:
    model = adapt()
    model.generate([seen()])
    model.model.train()
    try:
        for request in (judged(seen()), seen(which=1), captioned(seen(which=1))):
            reply = model.generate([request])[0]
            assert outline(reply) == outline(whole().generate([request])[0])
    finally:
        model.model.eval()
    assert model.reused
    assert model.generate([captioned(seen(which=1))]) == whole().generate(
        [captioned(seen(which=1))]
    )


@contextmanager
def full(model: Any, times: int) -> Iterator[None]:
    """The model's memory is full, so many times."""
    left = iter(range(times))

    def fail(module: Any, args: Any) -> None:
        if next(left, None) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_full_memory_forgets() -> None:
    model = adapt()
    model.generate([seen()])
    drawn = seen(temperature=1.5, seed=1)
    with full(model.model, 1):
        reply = model.generate([drawn])[0]
    assert reply == whole().generate([drawn])[0]
    assert reply.usage.cached == 0
    with full(model.model, 2), pytest.raises(ModelError, match="out of memory"):
        model.generate([drawn])
    model.generate([seen()])
    with full(model.model, 1), pytest.raises(ModelError, match="out of memory"):
        list(model.stream(seen()))
    assert model.prefixes.kept == []


# -- what it saves ------------------------------------------------------------


@cache
def large() -> tuple[Any, Any]:
    """LLaVA with a picture of 900 tokens, as many as a photograph has in today's models."""
    words = tokenizer(["<image>"], IMAGE)
    side = {"height": 240, "width": 240}
    pictures = tf.CLIPImageProcessorPil(size={"shortest_edge": 240}, crop_size=side)
    processor = tf.LlavaProcessor(
        pictures, words, **CLIP_TOKENS, chat_template=template("<image>\n")
    )
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**EYES, image_size=240, patch_size=8, projection_dim=32),
        text_config=text_config(tf.LlamaConfig, words, **TEXT),
        image_token_index=place(words, "<image>"),
    )
    return tf.LlavaForConditionalGeneration(config).eval(), processor


def spent(**how: Any) -> dict[str, int]:
    """Tokens of prompts that each stage of a guarded answer had to read."""
    model = HFModel(*large(), **how)
    spent, last = dict[str, int](), 0
    for stage, request in {
        "draft": seen(),
        "judge": judged(seen()),
        "caption": captioned(seen()),
    }.items():
        model.generate([request])
        spent[stage], last = model.prefilled - last, model.prefilled
    return spent


def test_judge_and_caption_read_a_fifth_at_most() -> None:
    before, after = spent(reuse=0), spent()
    assert before["draft"] == after["draft"] > 900
    for stage in ("judge", "caption"):
        assert after[stage] <= 0.2 * before[stage]


def test_a_guarded_answer_reports_it() -> None:
    policy = {
        "output": [{"detector": "grey", "strictness": 0.9, "grey": 0.1}],
        "judge": {"model": "target"},
    }
    grey = ScriptedDetector(lambda sample: 0.5, name="grey")
    with biased(Tiny(*large()), "yes"):
        guarded = wrap(*large(), policy, detectors={"grey": grey}).chat(seen())
    assert [call.stage for call in guarded.calls][:3] == ["draft", "caption", "closed"]
    assert guarded.calls[0].reply.usage.cached == 0
    assert guarded.calls[2].reply.usage.cached < 10
    assert guarded.usage.cached >= guarded.calls[1].reply.usage.cached > 900


class Counted(HFModel):
    """Notes how many rows each call has."""

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        self.sizes = [*getattr(self, "sizes", ()), len(requests)]
        return super().generate(requests)


def test_only_rows_in_need_go_on() -> None:
    asked = [seen(which=which) for which in range(4)]
    harmful = {reply.text for reply in adapt().generate(asked[:2])}
    harm = ScriptedDetector(lambda sample: float(sample.reply in harmful), name="harm")
    model = Counted(build("llava").model, build("llava").processor)
    policy = {"output": [{"detector": "harm"}]}
    guarded = wrap(model, policy=policy, detectors={"harm": harm}).chat_many(asked)
    assert [answer.action for answer in guarded] == ["repair", "repair", "pass", "pass"]
    # Draft, caption, and the answer with closed eyes.
    assert model.sizes == [4, 2, 2]


# -- the judge ----------------------------------------------------------------


@contextmanager
def biased(tiny: Tiny, word: str, rows: slice = slice(None)) -> Iterator[None]:
    """Every token is this one, in these rows of a batch."""
    token = tiny.processor.tokenizer.encode(word, add_special_tokens=False)[0]

    def push(module: Any, args: Any, out: Any) -> Any:
        out = out.clone()
        out[rows, :, token] += 100
        return out

    hook = tiny.model.lm_head.register_forward_hook(push)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("word", ["yes", " no"])
def test_a_judge_is_one_forward_pass(word: str) -> None:
    tiny, model = build("llava"), adapt()
    full = replace(judged(seen()), options={**prompts.JUDGE_OPTIONS, "max_tokens": 5})
    with biased(tiny, word):
        with caught(tiny.model) as calls:
            reply = model.generate([judged(seen())])[0]
        assert len(calls) == 1
        spoken = model.generate([full])[0]
    assert reply.first == pytest.approx(spoken.first, abs=1e-4)
    assert read_judge(reply) == read_judge(spoken)
    assert read_judge(reply).score == (word == "yes")


def test_a_judge_that_begins_otherwise_goes_on() -> None:
    tiny, model = build("llava"), adapt()
    with biased(tiny, "*"):
        reply = model.generate([judged(seen())])[0]
        *_, streamed = model.stream(judged(seen()))
    assert reply == streamed
    assert reply.text == "****"


def test_only_silent_judges_go_on() -> None:
    tiny, model = build("llava"), adapt()
    asked = [judged(seen()), judged(seen(which=1), "no"), judged(seen(which=2))]
    with biased(tiny, "yes", slice(2, 3)), caught(tiny.model) as calls:
        replies = model.generate(asked)
    assert [len(reply.tokens) for reply in replies] == [4, 4, 1]
    assert [reply.text for reply in replies][2:] == ["yes"]
    assert len(calls) == 4
    alone = [whole().generate([request])[0] for request in asked[:2]]
    assert list(map(outline, replies[:2])) == list(map(outline, alone))
    with biased(tiny, "yes"), caught(tiny.model) as calls:
        model.generate(asked)
    assert [len(call["input_ids"]) for call in calls] == [3]


def test_a_judge_with_beams() -> None:
    tiny, model = build("llava"), adapt()
    model.model.generation_config.num_beams = 2
    try:
        with biased(tiny, "yes"):
            reply = model.generate([judged(seen())])[0]
    finally:
        model.model.generation_config.num_beams = 1
    assert (reply.text, read_judge(reply).score) == ("yes", 1.0)
