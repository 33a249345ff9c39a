"""The encoder's recipe on a tiny BERT: what it learns from, that it repeats, resumes, exports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertModel

from mmguard.bundles import load_detector
from mmguard.detect.encoder import EncoderDetector
from mmguard.detect.windows import Window
from mmguard.errors import InputError
from mmguard.train.augment import dressed, undressed, vary
from mmguard.train.encoder import Stages, gather, soup, train_encoder
from mmguard.train.made import Source, compose, cross, depict, make, refuse, shorten, taint
from mmguard.train.measure import load_rows, measure
from mmguard.train.mix import Example, bare, contrasts, example, examples, hazards, one_pass
from mmguard.train.network import (
    HEADS,
    keep_layers,
    load_network,
    loss_of,
    targets,
)
from mmguard.train.pack import CANARY, platt, split
from mmguard.types import Sample
from tests.world import ask

Row = dict[str, Any]
HARM = [pair.response for pair in CANARY.harmful]
PLAIN = [pair.response for pair in CANARY.harmless]


def make_row(number: int, harmful: bool, source: str = "made") -> Row:
    draw = Random(number)
    pairs = CANARY.harmful if harmful else CANARY.harmless
    words = draw.choice(pairs).response.split()
    start = draw.randrange(3)
    return {
        "source": source,
        "prompt": draw.choice([pair.prompt for pair in pairs]) + f" {number}",
        "response": " ".join(words[start:]),
        "prompt_harm": int(harmful),
        "response_harm": int(harmful),
        "refusal": 0,
        "category": "hate" if harmful else None,
        "license": "CC0-1.0",
    }


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    text = " ".join(HARM + PLAIN + [p.prompt for p in CANARY.harmful + CANARY.harmless]).lower()
    pieces = {word.strip(".,:;?!'") for word in text.replace("'", " ").split()}
    signs = [*"abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'*_#>`-\"()"]
    special = ["[PAD]", "[UNK]", *(f"[unused{i}]" for i in range(99)), "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *signs, *(f"##{s}" for s in signs), *sorted(pieces - set(signs))]
    made = Tokenizer(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    made.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    rows = [make_row(i, i % 2 == 0) for i in range(640)]
    rows += [make_row(i, False, "benign_instruct") for i in range(40)]
    rows += [{"prompt": "Break in?", "harmful": HARM[0], "safe": PLAIN[1], "source": "pairs"}] * 4
    dev = [make_row(i, i % 3 == 0) for i in range(5000, 6200)]
    return write_rows(folder / "train.jsonl", rows), write_rows(folder / "dev.jsonl", dev)


# -- what is learnt from ------------------------------------------------------


def test_rows_become_examples() -> None:
    found = example(make_row(0, True))
    assert (found.answer, found.request, found.refusal) == (1.0, 1.0, 0.0)
    assert found.hazards == frozenset({"hate"})
    assert example(make_row(1, False)).hazards == frozenset()
    assert examples([{"source": "x", "prompt": "a", "response": "b"}]) == []


def test_pictured_requests_count_only_with_their_description() -> None:
    row: Row = {"source": "vlsbench", "prompt": "How?", "prompt_harm": 1}
    assert example(row).request is None
    described = example({**row, "meta": {"image_desc": "a burglar"}})
    assert (described.request, described.prompt) == (1.0, "How?\na burglar")
    answered = {**row, "source": "msts_en_mm", "response": "No.", "response_harm": 0}
    assert example(answered).request is None


def test_what_has_no_terms_is_left_out() -> None:
    assert examples([make_row(0, True, "shadow_alignment")]) == []


def test_refusal_marks_by_rule_are_weak() -> None:
    row = {**make_row(0, False), "refusal": None, "meta": {"refusal_rule": 1}}
    assert example(row).refusal == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("native", "named"),
    [
        ("Violent Crimes", {"violent_crimes"}),
        ("Non-Violent Crimes", {"non_violent_crimes"}),
        ("Suicide & Self-Harm", {"self_harm"}),
        ("Malware/Hacking", {"code_abuse"}),
        ("child pornograph", {"child_exploitation", "sexual_content"}),
        ("no such thing", None),
        (None, None),
    ],
)
def test_hazards(native: str | None, named: set[str] | None) -> None:
    assert hazards(native, True) == (None if named is None else frozenset(named))


def test_attacks_are_learnt_by_their_goal_too() -> None:
    row = {**make_row(0, True), "meta": {"goal": "break in"}}
    found = bare(row)
    assert found is not None
    assert found.prompt == "break in"
    assert bare(make_row(0, True)) is None


def test_contrasts() -> None:
    halves = [
        {"source": "hh", "prompt": "p", "response": r, "meta": {"pair": 1, "pref": r}}
        for r in ("rejected", "chosen")
    ]
    labelled, preferred = contrasts([*halves, {"prompt": "p", "harmful": "h", "safe": "s"}])
    assert (labelled.better.reply, labelled.worse.answer) == ("s", 1.0)
    assert (preferred.better.reply, preferred.worse.reply) == ("chosen", "rejected")
    assert preferred.worse.answer is None


TEXTS = st.text(st.sampled_from("ab .?'é\n"), max_size=80)


@given(TEXTS, TEXTS | st.none(), st.sampled_from([0.0, 1.0, None]), st.integers(0, 10**6))
def test_varying_never_makes_harm(
    prompt: str, reply: str | None, answer: float | None, seed: int
) -> None:
    start = Example(prompt, reply, answer=answer)
    found = vary(start, Random(seed))
    assert (found.reply is None) == (reply is None)
    if answer is None:
        assert found.answer is None
    else:
        assert found.answer is not None
        assert 0 <= found.answer <= answer
    assert vary(start, Random(seed)) == found


WORDS = st.text(st.sampled_from("abcde"), min_size=4, max_size=8)


@given(st.lists(WORDS, min_size=1, max_size=20), st.integers(0, 10**6))
def test_style_keeps_the_words(words: list[str], seed: int) -> None:
    text = ". ".join(words)
    listed = dressed(text, Random(seed))
    assert all(word in listed for word in words)
    plain = undressed("".join(f"* **{word}**\n" for word in words), Random(seed))
    assert plain.split() == words


@pytest.fixture(scope="module")
def source() -> Source:
    rows = [make_row(i, True, "gptfuzz_train") for i in range(20)]
    rows += [make_row(i, False, "benign_instruct") for i in range(20)]
    seen = {"prompt": "Why?", "source": "vlsbench", "meta": {"image_desc": "A burglar."}}
    return Source(examples([*rows, {**seen, "prompt_harm": 1}]))


@given(st.integers(0, 10**6))
def test_made_examples_are_what_they_say(source: Source, seed: int) -> None:
    draw = Random(seed)
    refused = refuse(source, draw)
    assert (refused.answer, refused.refusal, refused.request) == (0.0, 1.0, 1.0)
    composed = compose(source, draw)
    assert composed.answer == 0
    assert not any(text[:40] in (composed.reply or "") for text in HARM)
    tainted = taint(source, draw)
    assert tainted.answer == 1
    assert len((tainted.reply or "").split("\n\n")) > 1
    shown = depict(source, draw)
    assert "A burglar." in (shown.reply or "")
    assert shown.answer == any(text[-30:] in (shown.reply or "") for text in HARM)
    crossed = cross(source, draw)
    assert crossed.request is not None
    assert crossed.request + (crossed.answer or 0.0) == 1


def test_refusals_repeat_the_harm(source: Source) -> None:
    made = [refuse(source, Random(i)) for i in range(60)]
    assert any(e.prompt.rstrip("?").lower() in (e.reply or "").lower() for e in made)


def test_what_lacks_parts_is_not_made() -> None:
    assert make(examples([make_row(0, False)]), Random(0)) == []
    pool = examples([make_row(i, True) for i in range(40)])
    assert {e.refusal for e in make(pool, Random(0))} == {1.0}


def test_hard_ones_come_oftener() -> None:
    easy = Example("p", "r", answer=0.0, request=0.0)
    hard = Example("p", "r", answer=0.0, request=1.0)
    pictured = Example("p", "r", answer=0.0, source="msts_en_mm")
    harmful = Example("p", "r", answer=1.0, request=1.0)
    drawn = one_pass([easy, hard, pictured, harmful], Random(0), {}, hard=3.0)
    assert [drawn.count(e) for e in (easy, hard, pictured, harmful)] == [1, 3, 3, 1]


def test_short_answers() -> None:
    found = shorten(Example("p", "one two three " * 9, answer=0.0))
    assert 1 <= len((found.reply or "").split()) <= 15


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        gather([{"prompt": "a", "response": "b"}])


# -- the network --------------------------------------------------------------


def test_unknown_labels_teach_nothing() -> None:
    wanted = targets([Example("a", "b"), Example("a", "b", answer=1.0)])
    assert wanted.shape == (2, len(HEADS))
    logits = torch.zeros(2, len(HEADS), requires_grad=True)
    torch.autograd.backward(loss_of(logits, wanted))
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() == 0
    assert (logits.grad[1] != 0).tolist() == [True] + [False] * (len(HEADS) - 1)


def window(length: int, seed: int) -> Window:
    draw = Random(seed)
    return Window(
        tuple(draw.randrange(100, 160) for _ in range(length)),
        tuple(int(i > length // 2) for i in range(length)),
    )


def test_layers_are_kept_from_first_to_last(base: str) -> None:
    network = load_network(base)
    first, last = network.body.encoder.layer
    assert list(keep_layers(network, 2).body.encoder.layer) == [first, last]
    assert list(keep_layers(network, 1).body.encoder.layer) == [first]


def test_a_soup_is_the_mean(base: str) -> None:
    pair = [load_network(base), load_network(base)]
    mixed = soup(pair)
    assert torch.allclose(
        mixed.heads.weight, (pair[0].heads.weight + pair[1].heads.weight) / 2, atol=1e-6
    )


@given(st.floats(0.2, 4), st.floats(-2, 2))
@settings(deadline=None, max_examples=10)
def test_platt_finds_the_scale(slope: float, shift: float) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=20000)
    labels = (draw.random(20000) < 1 / (1 + np.exp(-slope * logits - shift))).astype(int)
    found = platt(logits, labels)
    assert abs(found.slope - slope) < 0.15 + 0.1 * slope
    assert abs(found.shift - shift) < 0.2


def test_halves_share_no_prompt() -> None:
    rows = [make_row(i // 2, False) for i in range(200)]
    halves = split(rows)
    assert len(halves.tuned) + len(halves.unseen) == 200
    assert not {r["prompt"] for r in halves.tuned} & {r["prompt"] for r in halves.unseen}


# -- from data to a bundle ----------------------------------------------------


class Stopped(Exception):
    """What a test does to a run."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many threads on few cores take longer than one; sums in one order are repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(base: str, data: tuple[Path, Path], out: Path, stop: int = 10**9) -> dict[str, Any]:
    steps: list[str] = []

    def tick(stage: str, step: int, total: int, loss: float) -> None:
        steps.append(stage)
        if len(steps) > stop:
            raise Stopped

    stages = Stages(base, out.with_name(f"{out.name}.work"), 4, (2, 1), rate=4e-3, tick=tick)
    result = train_encoder([data[0]], data[1], out, stages)
    return {**result, "ticks": len(steps)}


@pytest.fixture(scope="module")
def trained(
    base: str, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "mine"
    return out, train(base, data, out)


def test_a_bundle_comes_out(data: tuple[Path, Path], trained: tuple[Path, dict[str, Any]]) -> None:
    out, result = trained
    detector = load_detector(out)
    assert isinstance(detector, EncoderDetector)
    told = measure(detector, load_rows(data[1]))
    assert {key: result[key] for key in told} == told
    assert result["answer"]["auroc"] > 0.9
    assert detector.thresholds["low"] >= detector.thresholds["medium"]
    assert (out / "linear.npz").is_file()
    assert detector.parts.wording is not None
    assert 0 <= detector.parts.wording.share <= 1
    card = (out / "CARD.md").read_text(encoding="utf-8")
    assert "| made | 640 | CC0-1.0 |" in card
    early = HARM[0] + " Paris is a city." * 300
    plain = "Paris is a city. " * 300
    found = detector.score([Sample(ask("How?"), text) for text in (early, plain)])
    assert found[0].score > found[1].score


def test_an_interrupted_run_ends_the_same(
    base: str, data: tuple[Path, Path], tmp_path: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    out, whole = trained
    with pytest.raises(Stopped):
        train(base, data, tmp_path / "mine", stop=whole["ticks"] // 2)
    rest = train(base, data, tmp_path / "mine")
    assert rest["ticks"] < whole["ticks"]
    same = [folder / "model.onnx" for folder in (out, tmp_path / "mine")]
    assert same[0].read_bytes() == same[1].read_bytes()
