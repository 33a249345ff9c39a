"""Requests to tiny models, their own answers to them, and what reaches their forward call."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image as pil

from mmguard import prompts
from mmguard.media import load_image
from mmguard.models.hf import HFModel
from mmguard.types import AnyRequest, Image, Message, Reply, Request, Sample, Text
from tests.tiny import Tiny, build

TOKENS = 8
LONG = "Some words before the picture, my friend, and then what it shows:"
EYE = re.compile(r"(model\.)?(vision_tower|vision_model|visual)")


def picture(seed: int, width: int = 60, height: int = 48) -> Image:
    """Two plain halves, each of a colour that the seed draws."""
    draw = np.random.default_rng(seed).integers
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = draw(0, 255, 3), draw(0, 255, 3)
    return load_image(pil.fromarray(pixels))


def ask(*parts: Image | str, **options: Any) -> Request:
    made = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return Request((Message("user", made),), {"max_tokens": TOKENS, **options})


def seen(text: str = "What is this?", which: int = 0, **options: Any) -> Request:
    return ask(picture(which), text, **options)


def told(text: str = "What is it then, my friend?", **options: Any) -> Request:
    return ask(text, **options)


def rows(tiny: Tiny) -> list[Request]:
    """Short and long, wide and tall, with no picture, one and more, of one turn and more."""
    wide, tall = ask(picture(1, 100, 20), "yes or no? 0123"), ask("no", picture(2, 30, 50))
    if not tiny.takes_text:
        return [seen(), wide, tall]
    before = (Message("user", (Text("no"),)), Message("assistant", (Text("yes"),)))
    turns = Request((*before, *seen("It?", 4).messages), {"max_tokens": TOKENS})
    two = ask(picture(3), "and", picture(5, 20, 30))
    return [seen(), told(), wide, told("no"), two, tall, turns, ask("a", *two.images)]


def adapt(name: str = "llava") -> HFModel:
    tiny = build(name)
    return HFModel(tiny.model, tiny.processor)


def whole(name: str = "llava") -> HFModel:
    """The same model, reading every prompt from its start."""
    tiny = build(name)
    return HFModel(tiny.model, tiny.processor, reuse=0)


def judged(request: Request, answer: str = "a table") -> AnyRequest:
    return prompts.judge(prompts.JUDGE, Sample(request, answer), True)


def captioned(request: Request) -> Request:
    return prompts.look(prompts.CAPTION, request, TOKENS, True)[0]


def system(text: str, request: Request) -> Request:
    first = Message("system", (Text(text),))
    return replace(request, messages=(first, *request.messages))


def outline(reply: Reply) -> tuple[Any, ...]:
    """All but probabilities, whose last digits differ."""
    return reply.text, reply.tokens, reply.finish, reply.usage


def own(tiny: Tiny, request: Request, **how: Any) -> tuple[int, ...]:
    """The new tokens of the model's own greedy `generate`, by transformers alone."""
    inputs = tiny.processor.apply_chat_template(
        [{"role": m.role, "content": [plain(p) for p in m.parts]} for m in request.messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(tiny.model.dtype)
    how = {"max_new_tokens": TOKENS, "do_sample": False, **how}
    made = tiny.model.generate(**inputs, **how)[0].tolist()
    prompt = inputs["input_ids"][0].tolist()
    if tiny.model.config.is_encoder_decoder:
        return tuple(made[1:])
    return tuple(made[len(prompt) :] if made[: len(prompt)] == prompt else made)


def plain(part: Any) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": pil.open(io.BytesIO(part.data))}


@contextmanager
def watched(model: Any) -> Iterator[list[str]]:
    """Names of the tensors of every forward call, and of the eyes that were opened."""
    calls: list[str] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.extend(key for key, value in kwargs.items() if not empty(value))

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


def empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def pixels(calls: list[str]) -> bool:
    """Whether a picture came, as pixels or as what the eyes made of them."""
    marks = ("pixel", "image_", "mm_encoder_outputs", "aspect_ratio", "cross_attention")
    return any(mark in name for name in calls for mark in marks)


@contextmanager
def caught(model: Any) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of every forward call."""
    calls: list[dict[str, Any]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(dict(kwargs))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
