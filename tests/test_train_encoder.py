"""The encoder's recipe on a tiny BERT: that it repeats, resumes and exports."""

from __future__ import annotations

from collections.abc import Iterator
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
from mmguard.train.alarms import SOURCE
from mmguard.train.encoder import Stages, soup, train_encoder
from mmguard.train.fit import Batch, Fitting, Recipe
from mmguard.train.measure import load_rows, measure
from mmguard.train.mix import Example
from mmguard.train.network import (
    HEADS,
    collate,
    keep_layers,
    load_network,
    loss_of,
    targets,
)
from mmguard.train.pack import CANARY, platt, split
from mmguard.types import Sample
from tests.labelled import HARM, PLAIN, make_row, write_rows
from tests.world import ask


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


def test_the_teacher_is_not_heard_on_alarms(base: str, tmp_path: Path) -> None:
    run = Fitting(load_network(base), Recipe(taught=0.5), 1, tmp_path)
    teacher = load_network(base)
    torch.nn.init.zeros_(teacher.heads.weight)
    torch.nn.init.constant_(teacher.heads.bias, 9.0)
    run.teacher = teacher
    told = [Example("a", "b", answer=0.0), Example("a", "b", answer=0.0, source=SOURCE)]
    batch = Batch([window(9, 0), window(9, 1)], told)
    found = run.soften(targets(told), collate(batch.windows, "cpu"), run.shares(batch))
    assert found[:, 0].tolist() == pytest.approx([0.5, 0.0], abs=1e-3)
    assert found[1, 1] > 0.99


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

    stages = Stages(base, out.with_name(f"{out.name}.work"), 4, (2, 1, 1), rate=4e-3, tick=tick)
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
