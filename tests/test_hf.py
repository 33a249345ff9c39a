"""The conformance matrix: real architectures, and the model's own `generate` as the judge."""

from __future__ import annotations

import copy
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pil

from mmguard import wrap
from mmguard.errors import ImageError, InputError, MissingExtra, ModelError
from mmguard.media import decode, load_image
from mmguard.models.hf import HFModel, converse
from mmguard.models.scripted import ScriptedDetector
from mmguard.types import (
    Image,
    Message,
    Opaque,
    Reply,
    Request,
    Sample,
    TextMessage,
    TextRequest,
)
from tests.chats import (
    TOKENS,
    adapt,
    ask,
    caught,
    own,
    picture,
    pixels,
    rows,
    seen,
    told,
    watched,
)
from tests.tiny import ARCHITECTURES, Tiny, build

NAMES = sorted(ARCHITECTURES)
PICTURE_ONLY = ("blip2", "blip2_t5", "paligemma")
TEXTUAL = [name for name in NAMES if name not in PICTURE_ONLY]
# Those without a video half, which would need torchvision.
STOCK = [name for name in NAMES if not name.startswith(("internvl", "llava_one", "qwen", "smol"))]

# NumPy's word to the authors of PaliGemma's processor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# -- the matrix ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tokens_equal_the_models_own(name: str) -> None:
    tiny, model = build(name), adapt(name)
    for request in rows(tiny):
        reply = model.generate([request])[0]
        assert reply.tokens == own(tiny, request)
        assert reply.usage.completion == len(reply.tokens) > 0
        assert reply.usage.prompt > 0


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_equals_row_by_row(name: str) -> None:
    tiny, model = build(name), adapt(name)
    side = tiny.processor.tokenizer.padding_side
    alone = [model.generate([request])[0] for request in rows(tiny)]
    together = model.generate(rows(tiny))
    assert together == alone
    assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]
    assert tiny.processor.tokenizer.padding_side == side


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_in_a_batch_equal_those_alone(name: str) -> None:
    """Closer than tokens can tell: padding that is felt at all moves them."""
    model = adapt(name)
    asked = [
        replace(row, options={"max_tokens": 1, "top_logprobs": 3}) for row in rows(build(name))
    ]
    alone = [model.generate([request])[0].first for request in asked]
    together = [reply.first for reply in model.generate(asked)]
    assert together == [pytest.approx(first, rel=1e-3) for first in alone]


@pytest.mark.parametrize("name", NAMES)
def test_stream_equals_whole(name: str) -> None:
    model = adapt(name)
    for request in rows(build(name)):
        *pieces, last = model.stream(request)
        whole = model.generate([request])[0]
        assert last == whole
        assert isinstance(last, Reply)
        assert last.tokens == whole.tokens
        assert "".join(str(piece) for piece in pieces) == whole.text


@pytest.mark.parametrize("name", NAMES)
def test_answers_follow_the_picture(name: str) -> None:
    """Or the matrix would prove nothing."""
    replies = adapt(name).generate([seen(which=which) for which in range(5)])
    assert len({reply.tokens for reply in replies}) > 2
    assert len({token for reply in replies for token in reply.tokens}) > TOKENS / 2


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str) -> None:
    tiny = build(name)
    half = Tiny(copy.deepcopy(tiny.model).to(torch.bfloat16), tiny.processor)
    model = HFModel(half.model, half.processor)
    assert model.generate([seen()])[0].tokens == own(half, seen())
    assert model.encode([converse(seen())])["pixel_values"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", STOCK)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    tiny = build(name)
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = HFModel.load(str(tmp_path), batch_size=2)
    # BLIP-2 keeps no template.
    loaded.processor.chat_template = tiny.processor.chat_template
    assert loaded.generate(rows(tiny)) == adapt(name).generate(rows(tiny))


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        HFModel.load(str(tmp_path / "nothing"))


def test_architectures_say_what_they_can() -> None:
    assert [name for name in NAMES if build(name).takes_text] == TEXTUAL
    assert [name for name in NAMES if build(name).stock] == STOCK


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'mmguard\[hf\]'"):
        HFModel.load("some/model")


# -- eyes closed --------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTUAL)
def test_words_alone_reach_no_pixels(name: str) -> None:
    model = adapt(name)
    closed = TextRequest((TextMessage("user", "a description"),), {"max_tokens": 3})
    for request in (closed, told(max_tokens=3)):
        with watched(model.model) as calls:
            model.generate([request])
            list(model.stream(request))
        assert calls
        assert not pixels(calls)
    with watched(model.model) as calls:
        model.generate([seen()])
    assert pixels(calls)


def quiet() -> ScriptedDetector:
    return ScriptedDetector(lambda sample: 0.0, name="quiet")


def alarmed(draft: str) -> ScriptedDetector:
    """Finds harm in one text only: the draft."""
    return ScriptedDetector(lambda sample: float(sample.reply == draft), name="quiet")


POLICY = {"output": [{"detector": "quiet"}]}


@pytest.mark.parametrize("name", PICTURE_ONLY)
def test_a_model_that_needs_a_picture_says_so(name: str) -> None:
    tiny = build(name)
    with pytest.raises(ModelError, match="cannot take words without a picture"):
        adapt(name).generate([told()])
    with pytest.raises(ModelError, match="cannot take words without a picture"):
        list(adapt(name).stream(told()))
    draft = adapt(name).generate([seen()])[0].text
    policy = {**POLICY, "repair": ["caption", "resample"]}
    wrapped = wrap(tiny.model, tiny.processor, policy, detectors={"quiet": alarmed(draft)})
    guarded = wrapped.chat(seen())
    assert "cannot take words" in guarded.trail[1].error
    assert guarded.step in ("resample", "output")


# -- the guarded model --------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_guarded_equals_the_models_own(name: str) -> None:
    tiny = build(name)
    wrapped = wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": quiet()})
    for request in rows(tiny)[:3]:
        guarded = wrapped.chat(request)
        assert guarded.draft is not None
        assert guarded.draft.tokens == own(tiny, request)
        assert guarded.text == guarded.draft.text
        assert guarded.usage.completion == len(guarded.draft.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_guarded_batch_equals_row_by_row(name: str) -> None:
    tiny = build(name)
    wrapped = wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": quiet()})
    alone = [wrapped.chat(request) for request in rows(tiny)]
    assert wrapped.chat_many(rows(tiny)) == alone


@pytest.mark.parametrize("name", TEXTUAL)
def test_guarded_answer_with_closed_eyes(name: str) -> None:
    tiny = build(name)
    draft = adapt(name).generate([seen()])[0].text
    wrapped = wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": alarmed(draft)})
    with watched(tiny.model) as calls:
        guarded = wrapped.chat(seen())
    assert [call.stage for call in guarded.calls][:3] == ["draft", "caption", "closed"]
    assert pixels(calls)


def test_detectors_see_the_picture_too() -> None:
    found: list[Sample] = []

    def script(sample: Sample) -> float:
        found.append(sample)
        return 0.0

    tiny = build("llava")
    detector = ScriptedDetector(script, name="quiet")
    wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": detector}).chat(seen())
    assert found[0].request.images == (picture(0),)


# -- pictures -----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_reaches_the_model_as_its_original(mode: str) -> None:
    original = decode(picture(3)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        original = pil.fromarray(np.asarray(original).astype(np.uint16) * 257)
    check_tensors(load_image(original), original)


def test_orientation_is_honoured_as_by_transformers() -> None:
    buffer = io.BytesIO()
    exif = pil.Exif()
    exif[0x0112] = 6
    decode(picture(3)).save(buffer, "JPEG", exif=exif)
    check_tensors(load_image(buffer.getvalue()), pil.open(buffer))


def check_tensors(image: Image, original: Any) -> None:
    model = adapt("llava_next")
    content = [{"type": "image", "image": original}, {"type": "text", "text": "no"}]
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    made = model.encode([converse(ask(image, "no"))])
    assert made.keys() == inputs.keys()
    assert all(torch.equal(made[name], inputs[name]) for name in made)


def test_no_row_sees_another_rows_pictures() -> None:
    """BLIP-2 takes one picture a row, and would hand a second one to the next row."""
    model = adapt("blip2")
    first, last = ask(picture(1), picture(2), "no"), ask(picture(3), picture(4), "no")
    alone = model.generate([last])[0]
    assert model.generate([first, last])[1].tokens == alone.tokens


def test_batch_size_bounds_a_call() -> None:
    tiny = build("llava")
    model = HFModel(tiny.model, tiny.processor, batch_size=2)
    with caught(tiny.model) as calls:
        assert len(model.generate([seen(which=i, max_tokens=1) for i in range(5)])) == 5
    assert [len(call["input_ids"]) for call in calls] == [2, 2, 1]
    assert model.generate([]) == []


def test_without_a_pad_token_rows_go_alone() -> None:
    tiny = build("llava")
    processor = copy.deepcopy(tiny.processor)
    processor.tokenizer.pad_token = None
    requests = [seen(), seen("yes?", 2)]
    assert HFModel(tiny.model, processor).generate(requests) == adapt().generate(requests)


def test_damaged_picture() -> None:
    with pytest.raises(ImageError):
        adapt().generate([ask(Image(b"no picture"), "no")])


# -- refusals -----------------------------------------------------------------


def test_opaque_parts_are_refused() -> None:
    request = Request((Message("user", (Opaque("audio"),)),))
    with pytest.raises(InputError, match="kind 'audio'"):
        adapt().generate([request])
    with pytest.raises(InputError, match="kind 'audio'"):
        list(adapt().stream(request))


def test_no_chat_template() -> None:
    tiny = build("llava")
    processor = type("Bare", (), {"chat_template": None, "tokenizer": tiny.processor.tokenizer})()
    with pytest.raises(InputError, match=r"has no chat template: set processor\.chat_template"):
        wrap(tiny.model, processor, POLICY, detectors={"quiet": quiet()}).chat("hello")
