"""Prompts that go on from earlier ones: every answer is that of a prompt read whole."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mmguard.errors import ModelError
from mmguard.models import prefix
from mmguard.models.hf import HFModel
from mmguard.models.prefix import Prompt
from mmguard.types import (
    AnyRequest,
    Message,
    Reply,
    Request,
    Text,
    TextMessage,
    TextRequest,
)
from tests.chats import (
    LONG,
    TOKENS,
    adapt,
    ask,
    captioned,
    judged,
    outline,
    own,
    picture,
    pixels,
    seen,
    system,
    told,
    watched,
    whole,
)
from tests.parts import TEXT, tf
from tests.tiny import ARCHITECTURES, Tiny, build

NAMES = sorted(ARCHITECTURES)
ALONE = ("blip2", "blip2_t5", "paligemma")
SHARING = [name for name in NAMES if name not in ALONE]

# NumPy's word to the authors of PaliGemma's processor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shared token counts: in tiny models a picture has few."""
    monkeypatch.setattr(prefix, "LEAST", 1)


def turns(request: Request, answer: str, text: str) -> Request:
    """The same conversation one turn later."""
    more = (Message("assistant", (Text(answer),)), Message("user", (Text(text),)))
    return replace(request, messages=(*request.messages, *more))


def flow(tiny: Tiny) -> list[AnyRequest]:
    """What a guard asks, and others in between; each may go on from one before it."""
    draft, wide, late = seen(), ask(picture(3, 100, 20), "It?"), ask(LONG, picture(0), "no")
    asked: list[AnyRequest] = [draft, judged(draft), wide, captioned(draft), judged(wide), draft]
    asked += [late, ask(LONG, picture(2), "no"), ask(LONG, picture(2), "yes"), judged(late)]
    asked += [system(LONG, draft), system(LONG, wide), turns(draft, "yes", "Why?")]
    if tiny.takes_text:
        closed = TextRequest((TextMessage("user", "A table. What is this?"),), draft.options)
        asked += [closed, told("A table. What is it?"), told(LONG), judged(told(LONG))]
    if tiny.pictures > 1:
        two = ask(picture(0), picture(1, 20, 30), "and?", max_tokens=TOKENS)
        asked += [two, judged(two), ask(picture(0), picture(2, 20, 30), "and?"), captioned(two)]
        asked += [ask(picture(0), "and", *two.images), ask(picture(0), "and", picture(4))]
    return asked


def probabilities(request: AnyRequest) -> AnyRequest:
    return replace(request, options={"max_tokens": 1, "top_logprobs": 10**6})


# -- exactness ----------------------------------------------------------------


def test_architectures_say_why_not() -> None:
    assert [name for name in NAMES if adapt(name).unshared] == list(ALONE)
    for name in ALONE:
        model = adapt(name)
        assert model.unshared == f"{model.model.config.model_type}: {prefix.WHOLE[kind(model)]}"
    assert whole().unshared == "it was turned off"


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(kind: str, text: Any) -> Any:
        config = SimpleNamespace(model_type=kind, get_text_config=lambda decoder: text)
        return SimpleNamespace(config=config)

    llama = tf.LlamaConfig(**TEXT)
    assert prefix.unshared(stub("llava", llama)) == ""
    assert "nobody has tested" in prefix.unshared(stub("new", llama))
    linear = tf.Qwen3NextConfig(**TEXT, layer_types=["linear_attention", "full_attention"])
    assert "more than keys and values" in prefix.unshared(stub("llava", linear))
    monkeypatch.delattr(tf.Cache, "activate_past_recording")
    assert "upgrade it" in prefix.unshared(stub("llava", llama))


def kind(model: HFModel) -> str:
    return str(model.model.config.model_type)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_equal_those_of_whole_prompts(name: str) -> None:
    tiny, model = build(name), adapt(name)
    replies = [model.generate([request])[0] for request in flow(tiny)]
    asked = [whole(name).generate([request])[0] for request in flow(tiny)]
    assert list(map(outline, replies)) == list(map(outline, asked))
    assert not any(reply.usage.cached for reply in asked)
    assert model.reused == sum(reply.usage.cached for reply in replies)
    # Most begin like another one; Mllama goes on beside the same pictures alone.
    shared = sum(reply.usage.cached > 0 for reply in replies)
    assert shared > len(asked) / 3 if name in SHARING else shared == 0


@pytest.mark.parametrize("name", SHARING)
def test_probabilities_equal_those_of_whole_prompts(name: str) -> None:
    """Closer than tokens can tell: a misplaced token moves them."""
    model = adapt(name)
    for request in map(probabilities, flow(build(name))):
        first = model.generate([request])[0].first
        assert first == pytest.approx(whole(name).generate([request])[0].first, abs=1e-4)


@pytest.mark.parametrize("name", SHARING)
def test_streams_and_stop_strings(name: str) -> None:
    model = adapt(name)
    model.generate([seen()])
    text = whole(name).generate([seen("And this?", max_tokens=20)])[0].text
    stops: list[dict[str, Any]] = [{}, {"stop": text[3:5]}, {"stop": "\u2603 never"}]
    for how in stops:
        request = seen("And this?", max_tokens=20, **how)
        *pieces, last = model.stream(request)
        assert isinstance(last, Reply)
        assert last == whole(name).generate([request])[0]
        assert "".join(map(str, pieces)) == last.text
        assert last.usage.cached > 0


def test_a_window_forgets_nothing() -> None:
    """Gemma's layers look back 64 tokens, and are taken back to where others were needed."""
    model, words = adapt("gemma3"), "x" * 150
    for text in (words + "no", words + "yes", words[:80] + "yes"):
        request = seen(text, max_tokens=20, top_logprobs=10)
        reply, other = model.generate([request])[0], whole("gemma3").generate([request])[0]
        assert outline(reply) == outline(other)
        assert reply.first == pytest.approx(other.first, abs=1e-4)
    assert reply.usage.cached > 90


@pytest.mark.parametrize("how", [{"temperature": 1.5, "seed": 4}, {"repetition_penalty": 1.5}])
def test_draws_and_penalties(how: dict[str, Any]) -> None:
    model = adapt()
    for request in (seen(**how), seen("And this?", **how), seen(**how)):
        assert model.generate([request])[0] == whole().generate([request])[0]
    assert model.reused


POOL = [
    *(seen(text, which) for text in ("It?", "It is?", LONG) for which in (0, 1)),
    *(ask(LONG, picture(which), "no") for which in (0, 1)),
    *(told(text) for text in ("It?", LONG, "It is a")),
    ask(picture(0), picture(1), "It?"),
    ask(picture(0), "It?", picture(1)),
]


@settings(deadline=None, max_examples=20)
@given(order=st.lists(st.sampled_from(range(len(POOL))), max_size=8), limit=st.integers(1, 3))
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_any_order(name: str, order: list[int], limit: int) -> None:
    tiny = build(name)
    model = HFModel(tiny.model, tiny.processor, reuse=limit)
    for i in order:
        assert model.generate([POOL[i]])[0].tokens == answers(name)[i]
    assert len(model.prefixes.kept) <= limit


@cache
def answers(name: str) -> list[tuple[int, ...]]:
    return [own(build(name), request) for request in POOL]


def test_threads() -> None:
    model, asked = adapt(), [*POOL, *map(judged, POOL[:4])]
    alone = [whole().generate([request])[0] for request in asked]

    def streamed(request: AnyRequest) -> Any:
        return list(model.stream(request))[-1]

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(streamed, request) for request in asked * 2]
        replies = [pool.submit(model.generate, [request]) for request in asked * 2]
        found = [stream.result() for stream in streams] + [reply.result()[0] for reply in replies]
    assert list(map(outline, found)) == list(map(outline, alone * 4))
    assert model.reused


# -- what is shared -----------------------------------------------------------

EYE = 9
TOKEN = st.sampled_from([EYE, EYE, 1, 2])
PIXELS = st.sampled_from([None, 0.0, 1.0])


def prompt(tokens: Sequence[int], shade: float | None) -> Prompt:
    inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens))}
    if shade is not None:
        inputs["pixel_values"] = torch.full((1, 3), shade)
    return Prompt.of(inputs, EYE)


@settings(deadline=None)
@given(st.lists(TOKEN, min_size=1), st.lists(TOKEN, min_size=1), st.lists(TOKEN), PIXELS, PIXELS)
def test_no_prefix_lends_another_picture(
    new: list[int], old: list[int], both: list[int], shade: float | None, other: float | None
) -> None:
    """Eyes closed means no picture at all: `None` is another one than every picture."""
    new, old = [*both, *new], [*both, *old]
    size = prompt(new, shade).shared(prompt(old, other))
    assert 0 <= size < len(new)
    assert new[:size] == old[:size]
    assert shade == other or EYE not in new[:size]
    assert EYE not in new[:size] or EYE not in new[size:]
    assert shade is None or EYE in new or size == 0


@pytest.mark.parametrize("name", [name for name in SHARING if build(name).takes_text])
def test_closed_eyes_stay_closed(name: str) -> None:
    """After pictures, words that begin like theirs, and even words that spell a picture's place."""
    model, tiny = adapt(name), build(name)
    token = tiny.processor.tokenizer.decode([tiny.model.config.image_token_id])
    for request in (seen(), ask(LONG, picture(1), "no")):
        model.generate([request])
    for text in ("What is this?", f"{token}\nWhat is this?", f"{token}What is this?", LONG + "no"):
        closed = TextRequest((TextMessage("user", text),), {"max_tokens": 5, "top_logprobs": 600})
        with watched(tiny.model) as calls:
            found = attempt(model, closed)
        assert not pixels(calls)
        expected = attempt(whole(name), closed)
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1], abs=1e-4)


def attempt(model: HFModel, request: AnyRequest) -> tuple[Any, dict[str, float]]:
    """Tokens and probabilities, or why there are none: some processors count pictures."""
    try:
        reply = model.generate([request])[0]
    except ModelError as exc:
        return str(exc), {}
    return reply.tokens, dict(reply.first)


def test_a_picture_is_looked_at_once() -> None:
    model, tiny = adapt(), build("llava")
    model.generate([seen()])
    with watched(tiny.model) as calls:
        model.generate([judged(seen())])
        model.generate([captioned(seen())])
    assert not pixels(calls)
    with watched(tiny.model) as calls:
        model.generate([captioned(seen(which=1))])
    assert pixels(calls)


def test_a_few_tokens_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "LEAST", 16)
    model = adapt()
    replies = [model.generate([seen(which=which)])[0] for which in (0, 1, 0)]
    assert [reply.usage.cached > 0 for reply in replies] == [False, False, True]


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
    ],
)
def test_other_ways_to_generate_read_whole(how: dict[str, Any]) -> None:
    model = adapt()
    model.generate([seen()])
    reply = model.generate([seen(**how)])[0]
    assert reply.usage.cached == 0
    assert reply.tokens == own(build("llava"), seen(), **how)


def test_batches_read_whole() -> None:
    model, asked = adapt(), [seen(), seen("And this, if I may ask?", 1)]
    alone = [model.generate([request])[0] for request in asked]
    together = model.generate(asked)
    assert together == alone
    assert [reply.usage.cached for reply in together] == [0, 0]
