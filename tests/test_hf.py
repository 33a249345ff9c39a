"""The conformance matrix: real architectures, and the model's own `generate` as the judge."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pil
from transformers import GenerationConfig

from mmguard import wrap
from mmguard.errors import InputError, ModelError
from mmguard.media import decode, load_image
from mmguard.models.hf import HFModel
from mmguard.models.options import cut, held
from mmguard.models.scripted import ScriptedDetector
from mmguard.types import (
    Image,
    Message,
    Opaque,
    Reply,
    Request,
    Sample,
    Text,
    TextMessage,
    TextRequest,
)
from tests.tiny import ARCHITECTURES, EOS, Tiny, build

NAMES = sorted(ARCHITECTURES)
TEXTUAL = [name for name in NAMES if name not in ("paligemma", "blip2")]
TOKENS = 8

# NumPy's word to the authors of PaliGemma's processor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def picture(seed: int, width: int = 60, height: int = 48) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    pil.fromarray(pixels).save(buffer, "PNG")
    return load_image(buffer.getvalue())


def seen(text: str = "What is this?", which: int = 0, **options: Any) -> Request:
    options = {"max_tokens": TOKENS, **options}
    return Request((Message("user", (picture(which), Text(text))),), options)


def told(text: str = "What is it then, my friend?", **options: Any) -> Request:
    return Request((Message("user", (Text(text),)),), {"max_tokens": TOKENS, **options})


def adapt(name: str) -> HFModel:
    tiny = build(name)
    return HFModel(tiny.model, tiny.processor)


def rows(tiny: Tiny) -> list[Request]:
    wide = Request(
        (Message("user", (picture(1, 30, 50), Text("yes or no? 0123"))),), {"max_tokens": TOKENS}
    )
    return [seen(), told(), wide, told("no")] if tiny.takes_text else [seen(), wide]


def own(tiny: Tiny, request: Request) -> tuple[int, ...]:
    """The new tokens of the model's own greedy `generate`, by transformers alone."""
    content = [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image", "image": decode(part) if isinstance(part, Image) else None}
        for part in request.messages[0].parts
    ]
    inputs = tiny.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    made = tiny.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
    prompt = inputs["input_ids"][0].tolist()
    return tuple(made[len(prompt) :] if made[: len(prompt)] == prompt else made)


def quiet() -> ScriptedDetector:
    return ScriptedDetector(lambda sample: 0.0, name="quiet")


def alarmed(draft: str) -> ScriptedDetector:
    """Finds harm in one text only: the draft."""
    return ScriptedDetector(lambda sample: float(sample.reply == draft), name="quiet")


POLICY = {"output": [{"detector": "quiet"}]}


@pytest.mark.parametrize("name", NAMES)
def test_guarded_equals_the_models_own(name: str) -> None:
    tiny = build(name)
    wrapped = wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": quiet()})
    for request in rows(tiny):
        guarded = wrapped.chat(request)
        assert guarded.draft is not None
        assert guarded.draft.tokens == own(tiny, request)
        assert guarded.text == guarded.draft.text
        assert guarded.usage.completion == len(guarded.draft.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_equals_row_by_row(name: str) -> None:
    tiny = build(name)
    wrapped = wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": quiet()})
    alone = [wrapped.chat(request) for request in rows(tiny)]
    together = wrapped.chat_many(rows(tiny))
    assert together == alone
    assert [tokens(g) for g in together] == [tokens(g) for g in alone]


def tokens(guarded: Any) -> tuple[int, ...]:
    found: tuple[int, ...] = guarded.draft.tokens
    return found


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


@contextmanager
def watched(model: Any) -> Iterator[list[str]]:
    """Names of the tensors of every forward call, and of the eyes that were opened."""
    calls: list[str] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.extend(key for key, value in kwargs.items() if value is not None)

    def look(module: Any, args: Any) -> None:
        calls.append("pixel_values of the vision part")

    eyes = [part for name, part in model.named_modules() if EYE.fullmatch(name)]
    assert eyes
    hooks = [model.register_forward_pre_hook(note, with_kwargs=True)]
    hooks += [part.register_forward_pre_hook(look) for part in eyes]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


EYE = re.compile(r"(model\.)?(vision_tower|vision_model|visual)")


def pixels(calls: list[str]) -> bool:
    return any("pixel" in name or name.startswith("image_") for name in calls)


@pytest.mark.parametrize("name", TEXTUAL)
def test_eyes_closed_reaches_no_pixels(name: str) -> None:
    tiny = build(name)
    model = HFModel(tiny.model, tiny.processor)
    draft = model.generate([seen()])[0].text
    wrapped = wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": alarmed(draft)})
    with watched(tiny.model) as calls:
        guarded = wrapped.chat(seen())
    assert [call.stage for call in guarded.calls][:3] == ["draft", "caption", "closed"]
    closed = TextRequest((TextMessage("user", "a description"),), {"max_tokens": 3})
    assert pixels(calls)
    with watched(tiny.model) as calls:
        model.generate([closed])
    assert calls
    assert not pixels(calls)


@pytest.mark.parametrize("name", ["paligemma", "blip2"])
def test_a_model_that_needs_a_picture_says_so(name: str) -> None:
    tiny = build(name)
    with pytest.raises(
        ModelError, match=f"{name.replace('2', '')}.*cannot take words without a picture"
    ):
        adapt(name).generate([told()])
    draft = adapt(name).generate([seen()])[0].text
    policy = {**POLICY, "repair": ["caption", "resample"]}
    wrapped = wrap(tiny.model, tiny.processor, policy, detectors={"quiet": alarmed(draft)})
    guarded = wrapped.chat(seen())
    assert "cannot take words" in guarded.trail[1].error
    assert guarded.step in ("resample", "output")


def test_saved_and_loaded(tmp_path: Path) -> None:
    tiny = build("llava")
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = HFModel.load(str(tmp_path))
    assert loaded.generate([seen()])[0].tokens == own(tiny, seen())
    with pytest.raises(ModelError, match="cannot be loaded"):
        HFModel.load(str(tmp_path / "nothing"))


def llava() -> HFModel:
    return adapt("llava")


def test_lengths_and_ends() -> None:
    model, long = llava(), seen(max_tokens=40)
    whole = model.generate([long])[0]
    assert (len(whole.tokens), whole.finish) == (40, "length")
    config = GenerationConfig(eos_token_id=whole.tokens[4], pad_token_id=0, max_new_tokens=40)
    ended = model.generate([seen(generation_config=config, max_tokens=None)])[0]
    assert ended.finish == "stop"
    assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[4]) + 1]
    assert model.generate([seen(eos_token_id=whole.tokens[4])])[0].tokens == ended.tokens


def test_rows_stop_on_their_own() -> None:
    """One row of a batch ends early; its padding is no part of it."""
    model = llava()
    first = model.generate([seen(max_tokens=12)])[0].tokens
    end = next(token for token in first if token != EOS)
    requests = [
        seen(max_tokens=12, eos_token_id=end),
        seen("yes?", 5, max_tokens=12, eos_token_id=end),
    ]
    alone = [model.generate([request])[0] for request in requests]
    assert [r.tokens for r in model.generate(requests)] == [r.tokens for r in alone]
    assert alone[0].finish == "stop"


def test_stop_strings() -> None:
    model = llava()
    text = model.generate([seen(max_tokens=30)])[0].text
    word = text[6:8]
    for request in (seen(max_tokens=30, stop=word), seen(max_tokens=30, stop=[word])):
        reply = model.generate([request])[0]
        assert (reply.text, reply.finish) == (text[: text.find(word)], "stop")
        *pieces, last = model.stream(request)
        assert "".join(str(piece) for piece in pieces) == reply.text
        assert last == reply


def test_stop_helpers() -> None:
    assert cut("one two", ("tw", "e t")) == ("on", True)
    assert cut("one", ("x",)) == ("one", False)
    assert held("say st", ("stop",)) == 2
    assert held("say", ("stop",)) == 0


def test_seeds() -> None:
    model = llava()
    draws = [model.generate([seen(temperature=1.5, seed=s)])[0].tokens for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    state = torch.random.get_rng_state()
    model.generate([seen(temperature=1.5, seed=1)])
    assert torch.equal(state, torch.random.get_rng_state())
    both = model.generate([seen(temperature=1.5, seed=1), seen(temperature=1.5, seed=1)])
    assert [reply.tokens for reply in both] == [draws[0]] * 2
    *_, streamed = model.stream(seen(temperature=1.5, seed=1))
    assert isinstance(streamed, Reply)
    assert streamed.tokens == draws[0]


def test_temperature_zero_is_greedy() -> None:
    assert llava().generate([seen(temperature=0)])[0].tokens == own(build("llava"), seen())


def test_first_tokens() -> None:
    reply = llava().generate([seen(logprobs=True, top_logprobs=5)])[0]
    assert 1 <= len(reply.first) <= 5
    assert 0 < sum(reply.first.values()) <= 1
    best = max(reply.first, key=lambda token: reply.first[token])
    assert best == build("llava").processor.tokenizer.decode([reply.tokens[0]])
    assert llava().generate([seen()])[0].first == {}


def test_options_that_mean_nothing_here() -> None:
    reply = llava().generate([seen(user="u", n=1, stream=False, presence_penalty=0)])[0]
    assert reply.tokens == own(build("llava"), seen())
    with pytest.raises(InputError, match="option 'colour' means nothing"):
        llava().generate([seen(colour="red")])
    with pytest.raises(InputError, match="n=2"):
        llava().generate([seen(n=2)])


def test_closing_a_stream_stops_the_model() -> None:
    before = threading.active_count()
    stream = llava().stream(seen(max_tokens=2000))
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_failures_in_a_stream_reach_the_reader() -> None:
    with pytest.raises(ModelError, match="failed"):
        list(llava().stream(seen(max_tokens=-3)))
    with pytest.raises(InputError, match="means nothing"):
        list(llava().stream(seen(colour="red")))


def test_opaque_parts_are_refused() -> None:
    request = Request((Message("user", (Opaque("audio"),)),))
    with pytest.raises(InputError, match="kind 'audio'"):
        llava().generate([request])


def test_no_chat_template() -> None:
    tiny = build("llava")
    processor = type("Bare", (), {"chat_template": None, "tokenizer": tiny.processor.tokenizer})()
    with pytest.raises(InputError, match=r"has no chat template: set processor\.chat_template"):
        wrap(tiny.model, processor, POLICY, detectors={"quiet": quiet()}).chat("hello")


def test_bfloat16() -> None:
    tiny = build("llava")
    model = HFModel(ARCHITECTURES["llava"]().model.to(torch.bfloat16), tiny.processor)
    assert len(model.generate([seen()])[0].tokens) <= TOKENS


def test_training_mode_is_restored() -> None:
    model = llava()
    model.model.train()
    assert model.generate([seen()])[0].tokens == own(build("llava"), seen())
    assert model.model.training
    model.model.eval()


def test_detectors_see_the_picture_too() -> None:
    found: list[Sample] = []

    def script(sample: Sample) -> float:
        found.append(sample)
        return 0.0

    tiny = build("llava")
    detector = ScriptedDetector(script, name="quiet")
    wrap(tiny.model, tiny.processor, POLICY, detectors={"quiet": detector}).chat(seen())
    assert found[0].request.images == (picture(0),)
