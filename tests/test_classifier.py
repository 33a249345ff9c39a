"""Any sequence classifier: tiny real architectures against transformers by hand."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from mmguard.bundles import load_detector
from mmguard.detect.classifier import ClassifierDetector
from mmguard.errors import BundleError, DetectorError
from mmguard.types import Sample
from tests.parts import BOS, EOS, TEXT, enliven, tf, tokenizer
from tests.tiny_guards import write_bundle
from tests.world import ask

TWO = {0: "safe", 1: "unsafe"}
MANY = {0: "toxic", 1: "severe toxic", 2: "threat"}
ROWS = [
    Sample(ask("How do I cook rice?")),
    Sample(ask("What is this?"), "A red square."),
    Sample(ask("it"), "Fine, thank you; and what is this on the table? 0123456789"),
]
SMALL = {name: TEXT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "ModernBert": {"global_attn_every_n_layers": 1},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
}


def save(folder: Path, kind: str, labels: dict[int, str], **more: Any) -> Path:
    words = tokenizer([])
    words.model_max_length = 96
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", BOS), ("</s>", EOS)],
    )
    fields = {**SMALL, "vocab_size": len(words), "id2label": labels, **KINDS[kind], **more}
    fields["label2id"] = {name: i for i, name in labels.items()}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = getattr(tf, f"{kind}ForSequenceClassification")(
            getattr(tf, f"{kind}Config")(**fields)
        )
        enliven(model, 1.0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def load(folder: Path, labels: dict[int, str], kind: str = "Bert", **settings: Any) -> Any:
    own = {name: settings.pop(name) for name in ("problem_type",) if name in settings}
    weights = save(folder / "weights", kind, labels, **own)
    settings = {"model": str(weights), "device": "cpu", **settings}
    return load_detector(write_bundle(folder / "mine", "classifier", **settings))


def logits(detector: ClassifierDetector, *texts: str) -> Any:
    inputs = detector.tokenizer(*texts, return_tensors="pt")
    with torch.inference_mode():
        return detector.model(**inputs).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_by_hand(kind: str, tmp_path: Path) -> None:
    detector = load(tmp_path, TWO, kind)
    findings = detector.score(ROWS)
    for row, finding in zip(ROWS, findings, strict=True):
        texts = [row.request.query, *([] if row.reply is None else [row.reply])]
        share = logits(detector, *texts).softmax(-1)[1]
        assert finding.score == pytest.approx(float(share), abs=1e-5)
        assert (finding.chars, finding.images) == (row.chars, 0)
        assert finding.label == ("unsafe" if finding.score > 0.5 else "safe")
    assert len({round(f.score, 5) for f in findings}) == 3


def test_the_answer_alone(tmp_path: Path) -> None:
    detector = load(tmp_path, TWO, input="answer")
    share = logits(detector, "A red square.").softmax(-1)[1]
    finding = detector.score(ROWS)[1]
    assert finding.score == pytest.approx(float(share), abs=1e-5)
    assert finding.chars == len("A red square.")


def test_many_labels(tmp_path: Path) -> None:
    detector = load(tmp_path, MANY, problem_type="multi_label_classification")
    finding = detector.score(ROWS)[1]
    shares = logits(detector, "What is this?", "A red square.").sigmoid().tolist()
    expected = dict(zip(("toxic", "severe_toxic", "threat"), shares, strict=True))
    assert finding.categories == pytest.approx(expected, abs=1e-5)
    assert finding.score == pytest.approx(max(shares), abs=1e-5)


def test_several_unsafe_labels_add_up(tmp_path: Path) -> None:
    labels = {0: "neutral", 1: "LABEL_A", 2: "LABEL_B"}
    detector = load(tmp_path, labels, unsafe=["LABEL_A", "LABEL_B"])
    shares = logits(detector, "What is this?", "A red square.").softmax(-1)
    finding = detector.score(ROWS)[1]
    assert finding.score == pytest.approx(float(shares[1:].sum()), abs=1e-5)
    assert set(finding.categories) == {"label_a", "label_b"}


def test_one_logit(tmp_path: Path) -> None:
    detector = load(tmp_path, {0: "risk"}, unsafe=["risk"])
    share = logits(detector, "What is this?", "A red square.").sigmoid()[0]
    assert detector.score(ROWS)[1].score == pytest.approx(float(share), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_a_row_in_a_batch(kind: str, tmp_path: Path) -> None:
    detector = load(tmp_path, TWO, kind, batch_size=4)
    rows = [*ROWS, *reversed(ROWS)]
    alone = [detector.score([row])[0].score for row in rows]
    assert [f.score for f in detector.score(rows)] == pytest.approx(alone, abs=1e-5)
    assert detector.score([]) == []


@pytest.mark.parametrize("place", ["input", "pair", "answer"])
def test_nothing_long_goes_unseen(place: str, tmp_path: Path) -> None:
    """Harm in the middle of what is far too long is in some window."""
    detector = load(tmp_path, TWO, input="answer" if place == "answer" else "pair")
    text = "word " * 100 + "MARK" + " word" * 100
    sample = Sample(ask(text)) if place == "input" else Sample(ask("So? " * 60), text)
    windows = detector.split(0, sample)
    last = [window.second or window.first for window in windows]
    assert len(windows) > 2
    assert last[0].startswith("word")
    assert last[-1].endswith("word")
    assert any("MARK" in piece for piece in last)
    for window in windows:
        texts = [window.first, *([] if window.second is None else [window.second])]
        assert len(detector.tokenizer(*texts)["input_ids"]) <= detector.size
    [finding] = detector.score([sample])
    assert finding.score == max(row[1] for row in detector.classify(windows))
    assert finding.chars <= sample.chars
    assert finding.chars >= len(text)


def test_empty_texts(tmp_path: Path) -> None:
    detector = load(tmp_path, TWO)
    assert [f.error for f in detector.score([Sample(ask("")), Sample(ask(""), "")])] == ["", ""]


AMBIGUOUS: dict[str, tuple[dict[int, str], dict[str, Any]]] = {
    "generic": ({0: "LABEL_0", 1: "LABEL_1"}, {}),
    "neither": ({0: "north", 1: "south"}, {}),
    "rest": ({0: "hate", 1: "sarcasm", 2: "irony"}, {}),
    "all safe": ({0: "safe", 1: "benign"}, {}),
    "unknown": (TWO, {"unsafe": ["toxic"]}),
}


@pytest.mark.parametrize(("labels", "settings"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_labels(labels: dict[int, str], settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"settings\.unsafe"):
        load(tmp_path, labels, **settings)


@pytest.mark.parametrize(
    ("labels", "unsafe"),
    [
        ({0: "SAFE", 1: "INJECTION"}, [1]),
        ({0: "hate", 1: "not-hate"}, [0]),
        ({0: "toxic", 1: "non_toxic"}, [0]),
        ({0: "OK", 1: "violence", 2: "insult"}, [1, 2]),
    ],
)
def test_labels_that_say_it(labels: dict[int, str], unsafe: list[int], tmp_path: Path) -> None:
    assert load(tmp_path, labels).unsafe == unsafe


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"settings\.input 'both'"):
        load_detector(write_bundle(tmp_path, "classifier", model="x", input="both"))
    with pytest.raises(BundleError, match=r"settings\.model: this setting is missing"):
        load_detector(write_bundle(tmp_path, "classifier"))
    with pytest.raises(BundleError, match=r"'\./no/such' cannot be loaded"):
        load_detector(write_bundle(tmp_path, "classifier", model="./no/such"))


def test_nan_and_failures(tmp_path: Path) -> None:
    detector = load(tmp_path, TWO)
    detector.model.classifier.weight.data[:] = math.nan
    assert all("no probabilities" in f.error for f in detector.score(ROWS))
    detector.model.forward = None
    with pytest.raises(DetectorError, match="TypeError"):
        detector.score(ROWS)


def test_training_mode_is_kept(tmp_path: Path) -> None:
    detector = load(tmp_path, TWO)
    first = detector.score(ROWS)
    detector.model.train()
    assert [f.score for f in detector.score(ROWS)] == [f.score for f in first]
    assert detector.model.training


def test_many_threads_at_once(tmp_path: Path) -> None:
    detector = load(tmp_path, TWO)
    expected = detector.score(ROWS)
    with ThreadPoolExecutor(4) as pool:
        for findings in pool.map(detector.score, [ROWS] * 8):
            assert findings == expected
