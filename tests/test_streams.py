"""Streams of a model in this process: certain text, early ends, failures, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models

from mmguard.errors import ModelError
from mmguard.models.hf import HFModel
from mmguard.models.tokens import Sink, Spelling
from mmguard.types import Reply, Request
from tests.chats import adapt, caught, own, seen, told
from tests.parts import tf
from tests.tiny import build

# -- certain text -------------------------------------------------------------


@cache
def byte_fallback() -> Any:
    """A tokenizer that spells what it does not know in bytes, as Llama's and Gemma's do."""
    pieces = [
        "<unk>",
        "</s>",
        "▁a",
        "▁",
        "b",
        "st",
        "op",
        "é",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


SNOW = [*("\N{SNOWMAN}é".encode()), *b"stop"]
LIKELY = st.sampled_from([2, 3, 4, 5, 6, 7, *(8 + byte for byte in SNOW)])


@settings(deadline=None)
@given(
    tokens=st.lists(st.one_of(LIKELY, st.integers(0, 263)), max_size=24),
    stop=st.sampled_from([(), ("stop",), ("b", "ab a"), ("éé",)]),
)
@example(tokens=[203, 160, 0, 234], stop=()).via("a special token amid bytes")
@example(tokens=[5, 8 + 0xC3, 8 + 0xB6], stop=("stö",)).via("half a character amid a stop string")
@pytest.mark.parametrize("kind", ["byte_fallback", "byte_level"])
def test_pieces_make_the_whole(kind: str, tokens: list[int], stop: tuple[str, ...]) -> None:
    tokenizer = byte_fallback() if kind == "byte_fallback" else build("llava").processor.tokenizer
    spelling, pieces = Spelling(tokenizer, stop), list[str]()
    sink = Sink(pieces.append, spelling)
    sink.put(torch.tensor([[1, 2, 3]]))
    used = 0
    while used < len(tokens) and not spelling.stops(tokens[:used]):
        sink.put(torch.tensor([tokens[used]]))
        used += 1
    text, _, kept = spelling.read(tokens[:used], frozenset())
    assert text.startswith("".join(pieces))
    sink.finish(text)
    assert "".join(pieces) == text
    assert kept == tuple(tokens[:used])


def test_text_comes_as_it_is_made() -> None:
    *pieces, last = adapt().stream(seen(max_tokens=40))
    assert isinstance(last, Reply)
    assert len(pieces) > len(last.tokens) / 2


def test_special_tokens_are_no_text() -> None:
    def only(batch: int, ids: Any) -> list[int]:
        return [0] if ids.shape[-1] % 2 else [9]

    *pieces, last = adapt().stream(told(prefix_allowed_tokens_fn=only))
    assert isinstance(last, Reply)
    assert 0 in last.tokens
    assert "<pad>" not in last.text == "".join(str(piece) for piece in pieces)


# -- early ends and failures --------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mmguard-generate"]


def test_closing_a_stream_stops_the_model() -> None:
    model = adapt()
    with caught(model.model) as calls:
        stream = model.stream(seen(max_tokens=3000))
        next(stream)
        stream.close()
        assert not threads()
        assert len(calls) < 3000
    assert model.generate([seen()])[0].tokens == own(build("llava"), seen())


def test_a_stream_nobody_reads_starts_nothing() -> None:
    model = adapt()
    with caught(model.model) as calls:
        model.stream(seen()).close()
    assert not threads()
    assert calls == []


@contextmanager
def failing(model: Any, error: Exception, after: int) -> Iterator[None]:
    """The model's forward call raises, from the given call on."""
    seen_calls = iter(range(10**6))

    def fail(module: Any, args: Any) -> None:
        if next(seen_calls) >= after:
            raise error

    hook = model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("after", [0, 3])
def test_failures_reach_the_reader(after: int) -> None:
    model = adapt()
    error = torch.OutOfMemoryError("CUDA out of memory")
    with failing(model.model, error, after):
        with pytest.raises(ModelError, match="OutOfMemoryError: CUDA out of memory") as caused:
            list(model.stream(seen()))
        with pytest.raises(ModelError, match="out of memory"):
            model.generate([seen()])
    assert caused.value.__cause__ is error
    assert not threads()
    assert model.generate([seen()])[0].tokens == own(build("llava"), seen())


def test_failures_that_are_no_exception_reach_the_reader() -> None:
    def leave(batch: int, ids: Any) -> list[int]:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(adapt().stream(seen(prefix_allowed_tokens_fn=leave)))


# -- threads and modes --------------------------------------------------------


def test_threads_take_turns() -> None:
    model = adapt()
    drawn = [seen(which=i, max_tokens=9 + i, temperature=1.5, seed=i) for i in range(4)]
    requests = [*drawn, told(), told("no")]
    alone = [model.generate([request])[0] for request in requests]

    def streamed(request: Request) -> Any:
        return list(model.stream(request))[-1]

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(streamed, request) for request in requests * 2]
        batches = [pool.submit(model.generate, requests) for _ in range(2)]
        assert [stream.result() for stream in streams] == alone * 2
        assert [batch.result() for batch in batches] == [alone] * 2


def test_a_paused_reader_holds_nobody_up() -> None:
    model = adapt()
    stream = model.stream(seen(max_tokens=20))
    next(stream)
    assert model.generate([told()])[0] == model.generate([told()])[0]
    *_, last = stream
    assert last == model.generate([seen(max_tokens=20)])[0]


def test_training_modes_are_restored() -> None:
    model = HFModel(build("llava").model, build("llava").processor)
    model.model.train()
    frozen = next(model.model.model.vision_tower.children()).eval()
    try:
        assert model.generate([seen()])[0].tokens == own(build("llava"), seen())
        assert model.model.training
        assert not frozen.training
        assert model.model.model.language_model.training
    finally:
        model.model.eval()
