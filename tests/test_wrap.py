"""`wrap` as a user meets it: chat, stream, batches, the loop, and the pipeline's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from PIL import Image as pil

from mmguard import Guarded, wrap
from mmguard.errors import BatchError, ImageError, InputError, UnknownName
from mmguard.models.scripted import ScriptedDetector, ScriptedModel, echo
from mmguard.types import Finding
from mmguard.wrap import Wrapped
from tests.world import BAD, PICTURE, ask, harm_detector, png, tempted

POLICY = {"output": [{"detector": "harm"}]}
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": png()}, {"type": "text", "text": "?"}]}
]


def make(script: Any = tempted) -> Wrapped:
    return wrap(ScriptedModel(script), policy=POLICY, detectors={"harm": harm_detector()})


def test_chat() -> None:
    assert make().chat("hello").text == "a harmless answer"
    assert make().chat(MESSAGES).step == "caption"


def test_generation_options_reach_the_model() -> None:
    wrapped = make()
    wrapped.chat("hello", max_tokens=7)
    assert isinstance(wrapped.model, ScriptedModel)
    assert wrapped.model.seen[0].options == {"max_tokens": 7}


def test_stream_equals_chat() -> None:
    text, guarded = drain(make().stream(MESSAGES))
    assert guarded == make().chat(MESSAGES)
    assert guarded.text == text


def drain(stream: Generator[str, None, Guarded]) -> tuple[str, Guarded]:
    text = ""
    while True:
        try:
            text += next(stream)
        except StopIteration as stop:
            return text, stop.value


def test_chat_many() -> None:
    assert [g.step for g in make().chat_many([MESSAGES, "hello"])] == ["caption", "answer"]
    assert make().chat_many([]) == []


def test_chat_many_loses_nothing() -> None:
    with pytest.raises(BatchError, match="1 of 3 rows failed, the first is row 1") as caught:
        make().chat_many(["one", [], "three"])
    good, bad, last = caught.value.results
    assert (good.text, last.text) == ("a harmless answer", "a harmless answer")
    assert isinstance(bad, InputError)


def test_a_bad_picture_costs_one_row() -> None:
    bad = [{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}]
    good, error = make().run_many(["one", bad])
    assert isinstance(good, Guarded)
    assert isinstance(error, ImageError)


def test_on_a_loop() -> None:
    wrapped = make()

    async def both() -> list[Any]:
        whole = await wrapped.achat(MESSAGES)
        return [whole, *[piece async for piece in wrapped.astream(MESSAGES)]]

    for _ in range(2):
        whole, text, last = asyncio.run(both())
        assert whole == last
        assert text == whole.text


def test_refuses_a_model_without_processor() -> None:
    with pytest.raises(InputError, match="object needs its processor"):
        wrap(object())
    with pytest.raises(UnknownName, match="unknown policy"):
        wrap(ScriptedModel(), policy="balancedd")


class Pipe:
    """Calls the guarded model as transformers' pipeline is called."""

    picture = pil.new("RGB", (4, 4))

    def __init__(self) -> None:
        quiet = ScriptedDetector(lambda s: Finding("harm", 0.0), name="harm")
        self.model = ScriptedModel(echo)
        self.wrapped = wrap(self.model, policy=POLICY, detectors={"harm": quiet})

    def __call__(self, *args: Any, **how: Any) -> Any:
        return self.wrapped(*args, **how)


def test_pipeline_with_messages() -> None:
    pipe = Pipe()
    (row,) = pipe(text=MESSAGES, max_new_tokens=20)
    answer = {"role": "assistant", "content": "? [1 pictures]"}
    assert row["generated_text"] == [*MESSAGES, answer]
    assert row["input_text"] == MESSAGES
    assert isinstance(row["guarded"], Guarded)
    (row,) = pipe(MESSAGES, return_full_text=False)
    assert row["generated_text"] == "? [1 pictures]"
    assert pipe.model.seen[0].options == {"max_new_tokens": 20}
    assert pipe.model.seen[1].options == {"max_new_tokens": 256}


def test_pipeline_with_batches_of_messages() -> None:
    rows = Pipe()(text=[MESSAGES, MESSAGES], return_full_text=False, generate_kwargs={"top_k": 1})
    assert [row["generated_text"] for [row] in rows] == ["? [1 pictures]"] * 2


def test_pipeline_with_pictures_and_text() -> None:
    pipe = Pipe()
    (row,) = pipe(pipe.picture, "what is it?")
    assert row["generated_text"] == "what is it?what is it? [1 pictures]"
    (row,) = pipe([pipe.picture, pipe.picture], text="both?", return_full_text=False)
    assert row["generated_text"] == "both? [2 pictures]"
    rows = pipe([pipe.picture, [pipe.picture] * 2], ["a", "b"], return_full_text=False)
    assert [row["generated_text"] for [row] in rows] == ["a [1 pictures]", "b [2 pictures]"]
    rows = pipe(text=["a", "b"], return_full_text=False)
    assert [row["generated_text"] for [row] in rows] == ["a [0 pictures]", "b [0 pictures]"]


def test_pipeline_misuse() -> None:
    pipe = Pipe()
    with pytest.raises(InputError, match="into the messages"):
        pipe(pipe.picture, MESSAGES)
    with pytest.raises(InputError, match="give text"):
        pipe(pipe.picture)
    with pytest.raises(InputError, match="2 texts need as many"):
        pipe([pipe.picture], ["a", "b"])


def test_requests_as_values() -> None:
    assert make().chat(ask("hello", PICTURE)).step == "caption"
    assert BAD not in make().chat(ask("hello", PICTURE)).text
