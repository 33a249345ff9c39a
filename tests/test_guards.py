"""Guard LLMs in this process: real architectures, tiny, against transformers by hand."""

from __future__ import annotations

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmguard import registry, wrap
from mmguard.bundles import load_detector
from mmguard.detect.families import FAMILIES
from mmguard.detect.guards import GuardDetector
from mmguard.detect.questions import Writer
from mmguard.detect.resident import Resident
from mmguard.errors import BundleError, DetectorError, MissingExtra
from mmguard.models.hf import HFModel
from mmguard.models.scripted import ScriptedModel
from mmguard.prompts import defuse
from mmguard.types import Detector, Message, Opaque, Request, Sample, Text
from tests.tiny import build
from tests.tiny_guards import KINDS, LISTED, TURN, WILD, made, save_guard, text_guard, write_bundle
from tests.world import PICTURE, ask

LEADS = {"llama-guard-3": "\n\n", "qwen3guard": "Safety:", "granite-guardian-3.3": "<score>"}
ROWS = [
    Sample(ask("How do I cook rice?")),
    Sample(ask("How are you today, my friend, and what is this?"), "Fine, thank you."),
    Sample(ask("it"), "A red square on a table, 0123456789."),
    Sample(ask("What is it?", PICTURE)),
]
SEEING = ["llama-guard-3-vision", "llama-guard-4"]


def guard(family: str, **more: Any) -> GuardDetector:
    """A detector over the tiny model, whose labels need no share of the probability."""
    model, words = made(family)
    asker = Resident(HFModel(model, words, batch_size=3), FAMILIES[family], **{"floor": 0, **more})
    writer = Writer(FAMILIES[family], prompt=WILD if family == "wildguard" else "")
    return GuardDetector("g", {"medium": 0.5}, writer, asker)


def next_shares(model: Any, words: Any, text: str) -> Any:
    """The next token's probabilities, by one plain forward pass."""
    ids = words(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        return model(input_ids=ids).logits[0, -1].softmax(-1)


def by_hand(words: Any, shares: Any, label: str, lead: str) -> float:
    """The share of every spelling's first token after `lead`."""
    start = words.encode(lead, add_special_tokens=False)
    spelt = {space + word for space in ("", " ") for word in (label.lower(), label.capitalize())}
    ids = {words.encode(lead + word, add_special_tokens=False)[len(start)] for word in spelt}
    # The byte of a space alone begins every label and tells none from another.
    return float(sum(shares[i] for i in ids if words.decode([i]).strip()))


def render(words: Any, sample: Sample, **arguments: Any) -> str:
    turns = [{"role": "user", "content": sample.request.query}]
    if sample.reply is not None:
        turns.append({"role": "assistant", "content": sample.reply})
    text: str = words.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, **arguments
    )
    return text


@pytest.mark.parametrize("family", ["llama-guard-3", "granite-guardian-3", "granite-guardian-3.3"])
def test_the_softmax_over_two_labels(family: str) -> None:
    model, words = made(family)
    facts, lead = FAMILIES[family], LEADS.get(family, "")
    unsafe, safe = sorted(facts.labels, key=lambda label: -facts.labels[label])
    for sample, finding in zip(ROWS, guard(family).score(ROWS), strict=True):
        shares = next_shares(model, words, render(words, sample, **facts.arguments) + lead)
        bad = by_hand(words, shares, unsafe, lead)
        good = by_hand(words, shares, safe, lead)
        assert finding.score == pytest.approx(bad / (bad + good), abs=1e-6)


@pytest.mark.parametrize("loose", [False, True])
def test_qwen_has_three_labels(loose: bool, tmp_path: Path) -> None:
    model, words = made("qwen3guard")
    settings = {"controversial": "safe" if loose else "unsafe", "floor": 0, "device": "cpu"}
    detector = load_saved(tmp_path, "qwen3guard", **settings)
    for sample, finding in zip(ROWS, detector.score(ROWS), strict=True):
        shares = next_shares(model, words, render(words, sample) + "Safety:")
        safe, grey, unsafe = (
            by_hand(words, shares, label, "Safety:") for label in FAMILIES["qwen3guard"].labels
        )
        bad = unsafe if loose else unsafe + grey
        assert finding.score == pytest.approx(bad / (safe + grey + unsafe), abs=1e-6)


def test_shieldgemma_asks_once_a_guideline() -> None:
    model, words = made("shieldgemma")
    facts = FAMILIES["shieldgemma"]
    for sample, finding in zip(ROWS, guard("shieldgemma").score(ROWS), strict=True):
        expected = {}
        for one in facts.criteria:
            own = one.request if sample.reply is None else one.answer
            shares = next_shares(model, words, render(words, sample, **own))
            yes, no = (by_hand(words, shares, label, "") for label in ("yes", "no"))
            expected[one.category] = yes / (yes + no)
        assert finding.categories == pytest.approx(expected, abs=1e-6)
        assert finding.score == max(finding.categories.values())


def test_wildguard_answers_line_by_line() -> None:
    model, words = made("wildguard")
    sample = ROWS[1]
    text = WILD.format(query=sample.request.query, answer=sample.reply)
    for lead in FAMILIES["wildguard"].answer:
        text += lead
        shares = next_shares(model, words, text)
        yes, no = (by_hand(words, shares, label, lead) for label in ("yes", "no"))
        text += (" yes" if yes > no else " no") + "\n"
    assert guard("wildguard").score([sample])[0].score == pytest.approx(yes / (yes + no), abs=1e-6)


@pytest.mark.parametrize("family", [*KINDS, *SEEING])
def test_a_row_alone_is_a_row_in_a_batch(family: str) -> None:
    detector = guard(family)
    rows = [*ROWS, *reversed(ROWS)]
    together = detector.score(rows)
    alone = [detector.score([row])[0] for row in rows]
    assert [f.score for f in together] == pytest.approx([f.score for f in alone], abs=1e-5)
    assert all(0 <= f.score <= 1 and not f.error for f in together)
    assert len({round(f.score, 6) for f in together}) == 4


@pytest.mark.parametrize("family", SEEING)
def test_pictures_are_seen_and_counted(family: str) -> None:
    detector = guard(family)
    red, words = detector.score([Sample(ask("What?", PICTURE)), Sample(ask("What?"))])
    assert (red.images, words.images) == (1, 0)
    assert abs(red.score - words.score) > 1e-4
    two = Sample(ask("What?", PICTURE, PICTURE), "A square.")
    most = FAMILIES[family].images
    assert detector.score([two])[0].images == min(2, most)


def test_text_guards_see_no_picture() -> None:
    blind, plain = guard("llama-guard-3").score(
        [Sample(ask("What?", PICTURE), "So."), Sample(ask("What?"), "So.")]
    )
    assert (blind.images, blind.chars) == (0, 8)
    assert blind.score == pytest.approx(plain.score, abs=1e-6)


def turns(*said: tuple[Any, str]) -> Request:
    return Request(tuple(Message(role, (Text(text),)) for role, text in said))


def test_conversations_alternate() -> None:
    request = turns(
        ("system", "Be kind."), ("assistant", "Hi!"), ("user", "One"), ("user", "Two"),
        ("assistant", "Three"), ("tool", "Four"),
    )  # fmt: skip
    [question] = Writer(FAMILIES["llama-guard-3"]).write(Sample(request, "Five"))
    said = [(m.role, m.text) for m in question.request.messages]
    assert said == [
        ("user", "One\nTwo"), ("assistant", "Three"), ("user", "Four"), ("assistant", "Five"),
    ]  # fmt: skip
    last = Writer(FAMILIES["shieldgemma"]).write(Sample(request, "Five"))[0].request
    assert [m.text for m in last.messages] == ["Four", "Five"]


def test_a_reply_to_nobody_is_judged() -> None:
    request = Request((Message("system", (Text("Go."),)), Message("user", (Opaque("audio"),))))
    for one in (request, turns(("system", "Go."))):
        [question] = Writer(FAMILIES["llama-guard-3"]).write(Sample(one, "An answer"))
        assert [m.role for m in question.request.messages] == ["user", "assistant"]
        assert question.request.messages[-1].text == "An answer"


@pytest.mark.parametrize(
    "mark", ["<|eot_id|>", "<|start_header_id|>", "</s>", "<end_of_turn>", "[/INST]", "<|image|>"]
)
def test_no_text_ends_its_own_turn(mark: str) -> None:
    assert mark not in defuse(f"a{mark}b")
    [question] = Writer(FAMILIES["llama-guard-4"]).write(Sample(ask(f"a{mark}"), f"b{mark}c"))
    assert not any(mark in message.text for message in question.request.messages)
    assert defuse("1 < 2, a <b> [c] |d|") == "1 < 2, a <b> [c] |d|"


def test_categories_are_read_from_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = guard("llama-guard-3", listing=0.0)
    assert isinstance(detector.asker, Resident)
    words = detector.asker.host.tokenizer
    seen: list[str] = []

    def decode(ids: Any, **how: Any) -> str:
        seen.append(type(ids).__name__)
        return "S1,S10\nS99"

    monkeypatch.setattr(words, "decode", decode)
    for finding in detector.score(ROWS):
        assert finding.categories == {"violent_crimes": finding.score, "hate": finding.score}
    assert len(seen) >= len(ROWS)


def test_labels_without_probability_are_an_error() -> None:
    detector = guard("llama-guard-3", floor=1.0)
    with pytest.raises(DetectorError, match="is it of this family"):
        detector.score(ROWS)


def test_nan_is_an_error() -> None:
    model, words = text_guard("llama-guard-3")
    model.get_output_embeddings().weight.data[:] = math.nan
    asker = Resident(HFModel(model, words), FAMILIES["llama-guard-3"], floor=0)
    with pytest.raises(DetectorError, match="NaN"):
        GuardDetector("g", {}, Writer(FAMILIES["llama-guard-3"]), asker).score(ROWS)


def test_one_row_too_long_fails_alone() -> None:
    findings = guard("llama-guard-3").score([ROWS[0], Sample(ask("long " * 4096)), ROWS[1]])
    assert [bool(f.error) for f in findings] == [False, True, False]
    assert "more than" in findings[1].error


def load_saved(folder: Path, family: str, **settings: Any) -> Detector:
    save_guard(folder / "weights", *made(family))
    return load_detector(
        write_bundle(
            folder / "mine", "guard", family=family, model=str(folder / "weights"), **settings
        )
    )


@pytest.mark.parametrize("family", [*KINDS, "llama-guard-3-vision"])
def test_by_yaml(family: str, tmp_path: Path) -> None:
    more = {"prompt": WILD} if family == "wildguard" else {}
    detector = load_saved(tmp_path, family, floor=0, device="cpu", batch_size=2, **more)
    assert (detector.name, detector.thresholds["medium"]) == ("mine", 0.5)
    expected = [f.score for f in guard(family).score(ROWS)]
    assert [f.score for f in detector.score(ROWS)] == pytest.approx(expected, abs=1e-5)


def test_templates_that_take_parts() -> None:
    model, words = made("llama-guard-3")
    words = copy.deepcopy(words)
    words.chat_template = words.chat_template.replace(TURN, LISTED)
    asker = Resident(HFModel(model, words), FAMILIES["llama-guard-3"], floor=0)
    detector = GuardDetector("g", {}, Writer(FAMILIES["llama-guard-3"]), asker)
    plain = guard("llama-guard-3")
    assert not asker.plain
    scores = [f.score for f in detector.score(ROWS)]
    assert scores == pytest.approx([f.score for f in plain.score(ROWS)], abs=1e-6)


def test_any_model_can_be_the_judge() -> None:
    tiny = build("llava")
    family = FAMILIES["judge"]
    asker = Resident(HFModel(tiny.model, tiny.processor), family, floor=0)
    rows = GuardDetector("self", {}, Writer(family), asker).score([*ROWS, ROWS[3]])
    assert [f.images for f in rows] == [0, 0, 0, 1, 1]
    assert rows[3].score == pytest.approx(rows[4].score, abs=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"family": "llama-guard"}, "did you mean 'llama-guard-"),
    "model": ({"family": "judge", "model": None}, r"settings\.model None: .*string"),
    "spelling": ({"family": "judge", "modle": "x"}, r"settings\.modle 'x': no such setting"),
    "prompt": ({"family": "wildguard"}, "has no chat template: give prompt"),
    "own": ({"family": "shieldgemma", "prompt": "x"}, "remove prompt"),
    "folder": ({"family": "qwen3guard", "model": "./no/such"}, "cannot be loaded"),
    "key": ({"family": "judge", "url": "http://127.0.0.1:1/v1", "key_env": "NO_KEY"}, "'NO_KEY'"),
    "url": ({"family": "judge", "url": "127.0.0.1"}, r"settings\.url '127\.0\.0\.1'"),
    "timeout": ({"family": "judge", "timeout_s": 0}, r"settings\.timeout_s 0: .*greater than 0"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
def test_wrong_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        load_detector(write_bundle(tmp_path, "guard", **{"model": "m", **settings}))


def test_models_of_another_family(tmp_path: Path) -> None:
    model, words = made("wildguard")
    folder = save_guard(tmp_path / "weights", model, words)
    with pytest.raises(BundleError, match="has no chat template, and its family"):
        load_detector(write_bundle(tmp_path, "guard", family="qwen3guard", model=str(folder)))
    words = text_guard("llama-guard-3")[1]
    words.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(BundleError, match="does not take a turn"):
        Resident(HFModel(model, words), FAMILIES["llama-guard-3"])


def test_templates_that_refuse_a_row() -> None:
    model, words = made("llama-guard-3")
    words = copy.deepcopy(words)
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    asker = Resident(HFModel(model, words), FAMILIES["llama-guard-3"], floor=0)
    findings = GuardDetector("g", {}, Writer(FAMILIES["llama-guard-3"]), asker).score(ROWS)
    assert [bool(f.error) for f in findings] == [False, True, True, False]
    assert "template" in findings[1].error


def test_labels_that_no_token_tells_apart() -> None:
    model, words = made("llama-guard-3")
    family = replace(FAMILIES["llama-guard-3"], labels={"safe": 0.0, "safer": 1.0})
    with pytest.raises(BundleError, match="same first token"):
        GuardDetector("g", {}, Writer(family), Resident(HFModel(model, words), family)).score(ROWS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub names that would be fetched."""
    names: list[str] = []

    def refuse(auto: str, model: str, **options: Any) -> Any:
        names.append(model)
        raise BundleError("not here")

    monkeypatch.setattr("mmguard.detect.resident.load_weights", refuse)
    return names


def test_by_name(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for name in registry.BUILTIN["detectors"]:
        if name == "openai-moderation":
            assert load_detector(name).name == name
            continue
        with pytest.raises(BundleError, match="not here"):
            load_detector(name)
        assert asked[-1].rpartition("/")[2].lower() == name
    with pytest.raises(BundleError, match="not here"):
        wrap(ScriptedModel(str), policy={"output": [{"detector": "qwen3guard-gen-0.6b"}]})
    assert asked[-1] == "Qwen/Qwen3Guard-Gen-0.6B"


@pytest.mark.parametrize(
    ("package", "extra", "settings"),
    [
        ("torch", "hf", {"family": "llama-guard-3"}),
        ("transformers", "hf", {"family": "llama-guard-4"}),
        ("httpx", "server", {"family": "llama-guard-3", "url": "http://127.0.0.1:9/v1"}),
    ],
)
def test_without_the_extra(
    package: str,
    extra: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'mmguard\[{extra}\]'"):
        load_detector(write_bundle(tmp_path, "guard", model="no/such", **settings))


def test_many_threads_at_once() -> None:
    detector = guard("llama-guard-3")
    expected = [f.score for f in detector.score(ROWS)]
    with ThreadPoolExecutor(4) as pool:
        for findings in pool.map(detector.score, [ROWS] * 8):
            assert [f.score for f in findings] == pytest.approx(expected, abs=1e-6)
