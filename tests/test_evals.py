"""Figures, intervals, curves, and the report as JSON, as a page and on the command line."""

from __future__ import annotations

import gzip
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mmguard.bundles import load_detector
from mmguard.errors import InputError
from mmguard.evals.curves import reliability, roc, spread, sweep
from mmguard.evals.figures import auroc, calibration, f1, figures, flag
from mmguard.evals.intervals import clopper_pearson, lower_bound, upper_bound, with_intervals
from mmguard.evals.page import render
from mmguard.evals.report import Outcome, Setup, evaluate
from mmguard.evals.rows import Example, load_examples, score_examples
from mmguard.models.scripted import ScriptedDetector
from mmguard.types import Sample
from tests.test_cli import call
from tests.test_detect import made_up, write_rows

ROUGH = st.lists(
    st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.integers(0, 1)), min_size=2, max_size=40
)


def arrays(rows: list[tuple[float, int]]) -> tuple[Any, Any]:
    scores, labels = zip(*rows, strict=True)
    return np.array(scores, float), np.array(labels)


# -- figures --------------------------------------------------------------------


@given(ROUGH)
def test_auroc_counts_pairs(rows: list[tuple[float, int]]) -> None:
    scores, labels = arrays(rows)
    pairs = [
        1.0 if bad > good else 0.5 if bad == good else 0.0
        for bad in scores[labels == 1]
        for good in scores[labels == 0]
    ]
    if pairs:
        assert auroc(scores, labels) == pytest.approx(np.mean(pairs))
    else:
        assert math.isnan(auroc(scores, labels))


@given(ROUGH)
def test_roc_encloses_the_same_area(rows: list[tuple[float, int]]) -> None:
    scores, labels = arrays(rows)
    if len(set(labels.tolist())) == 2:
        points = roc(scores, labels)
        assert points[0].tolist() == [0, 0, 1]
        assert points[-1, :2].tolist() == [1, 1]
        assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(auroc(scores, labels))


def test_calibration_of_perfect_bins_is_zero() -> None:
    scores = np.repeat([0.25, 0.5, 0.75], 8)
    labels = np.concatenate([np.arange(8) < hits for hits in (2, 4, 6)]).astype(int)
    assert calibration(scores, labels) == 0
    assert calibration(1 - scores, labels) > 0.3
    bins = reliability(scores, labels)
    assert bins.score.tolist() == bins.harmful.tolist() == [0.25, 0.5, 0.75]
    assert calibration(np.array([1.0]), np.array([1])) == 0


@given(ROUGH)
def test_sweep_agrees_with_figures(rows: list[tuple[float, int]]) -> None:
    scores, labels = arrays(rows)
    found = sweep(scores, labels, 8)
    for i, threshold in enumerate(found["threshold"]):
        expected = f1(scores, labels, threshold) if labels.any() else math.nan
        assert found["f1"][i] == pytest.approx(expected, nan_ok=True)
    assert spread(scores, 5).sum() == pytest.approx(1)


def test_without_a_score_is_flagged_and_on_no_curve() -> None:
    scores, labels = np.array([0.9, np.nan, 0.1, np.nan]), np.array([1, 1, 0, 0])
    assert flag(scores, 1.0).tolist() == [False, True, False, True]
    assert auroc(scores, labels) == 1
    assert figures(scores, labels, {"medium": 0.5})["medium"]["false_alarms"] == 0.5
    assert math.isnan(auroc(np.array([np.nan]), np.array([1])))


# -- intervals --------------------------------------------------------------------


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.5, 0.999))
@settings(deadline=None)
def test_clopper_pearson_is_scipys(count: int, share: float, confidence: float) -> None:
    from scipy.stats import beta

    hits = round(share * count)
    upper = beta.ppf(confidence, hits + 1, count - hits) if hits < count else 1.0
    lower = beta.ppf(1 - confidence, hits, count - hits + 1) if hits else 0.0
    assert upper_bound(hits, count, confidence) == pytest.approx(upper, abs=1e-9)
    assert lower_bound(hits, count, confidence) == pytest.approx(lower, abs=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_clopper_pearson_covers(rate: float) -> None:
    draws = np.random.default_rng(0).binomial(200, rate, 2000)
    spans = {hits: clopper_pearson(hits, 200) for hits in set(draws.tolist())}
    held = [spans[hits][0] <= rate <= spans[hits][1] for hits in draws.tolist()]
    assert np.mean(held) >= 0.95


def test_bootstrap_covers_and_repeats() -> None:
    held, random = [], np.random.default_rng(0)
    for trial in range(60):
        labels = np.tile([0, 1], 60)
        scores = np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
        found = with_intervals(scores, labels, np.arange(120), 0.5, trial)
        low, high = found["recall"]["low"], found["recall"]["high"]
        assert isinstance(low, float)
        assert isinstance(high, float)
        held.append(low <= 0.6915 <= high)
    assert np.mean(held) >= 0.85
    assert found == with_intervals(scores, labels, np.arange(120), 0.5, trial)


def test_intervals_know_repeated_prompts() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat(random.integers(0, 2, 40), 10)
    scores = np.repeat(random.random(40), 10)
    alone = with_intervals(scores, labels, np.arange(400), 0.5, 0)["recall"]
    grouped = with_intervals(scores, labels, np.repeat(np.arange(40), 10), 0.5, 0)["recall"]
    assert width(grouped) > 2 * width(alone)


def width(figure: Any) -> float:
    return float(figure["high"] - figure["low"])


def test_a_rate_of_zero_has_an_interval() -> None:
    scores, labels = np.array([0.1] * 30), np.array([0] * 30)
    found = with_intervals(scores, labels, np.arange(30), 0.5, 0)
    assert found["false_alarms"]["value"] == 0
    assert found["false_alarms"]["high"] == pytest.approx(clopper_pearson(0, 30)[1], abs=1e-4)
    assert found["recall"] == found["f1"] == {"value": None, "low": None, "high": None}


# -- the report and its page ------------------------------------------------------------


def by_prompt(sample: Sample) -> float:
    return float(sample.request.query)


def outcome(*rows: tuple[str, bool], source: str = "mine") -> Outcome:
    examples = [
        Example(i, source, ("fraud",) if bad else (), prompt, "<b>an answer</b>", None, bad)
        for i, (prompt, bad) in enumerate(rows)
    ]
    return Outcome(examples, list(score_examples(ScriptedDetector(by_prompt), examples)))


SETUP = Setup("scripted", "answer", "medium", 0.5, {"low": 0.8, "medium": 0.5, "high": 0.2})
ROWS = [(str(n / 20), n > 9) for n in range(20)] + [("0.95", False), ("broken", True)]


def test_report() -> None:
    made = evaluate(outcome(*ROWS), SETUP)
    assert (made["rows"], made["harmful"], made["errors"]) == (22, 11, 1)
    assert made["figures"]["recall"]["value"] == 1
    assert made["figures"]["false_alarms"]["value"] == pytest.approx(1 / 11, abs=1e-4)
    assert made["worst"]["harmless"][0]["score"] == 0.95
    assert made["worst"]["harmless"][0]["flagged"] is True
    assert made["worst"]["harmful"][0]["score"] == 0.5
    assert "broken" in made["failed"][0]["error"]
    assert made["categories"]["fraud"]["rows"] == made["sources"]["mine"]["harmful"] == 11
    assert made["words"]["low"]["recall"] == pytest.approx(5 / 11, abs=1e-4)
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_nothing_could_be_scored() -> None:
    with pytest.raises(InputError, match="no row could be scored, the first because"):
        evaluate(outcome(("broken", True), ("gone", False)), SETUP)


class Checker(HTMLParser):
    """Every element closed in order, and nothing that loads."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        assert not {"src", "href", "onclick"} & {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.names
    assert "nan" not in page.split("</style>")[1].lower().replace("governance", "")
    return checker


def test_page() -> None:
    checker = parse(render(evaluate(outcome(*ROWS), SETUP)))
    assert checker.names.count("figure") == 4
    assert "<b>an answer</b>" in checker.words
    text = "".join(checker.words)
    assert "1 rows could not be scored. They count as flagged" in text
    for word in ("AUROC", "Calibration error", "By source", "By category", "fraud"):
        assert word in text


@pytest.mark.parametrize("bad", [True, False])
def test_page_of_one_kind_of_row(bad: bool) -> None:
    rows = [(str(n / 20), bad) for n in range(20)]
    checker = parse(render(evaluate(outcome(*rows), SETUP)))
    assert checker.names.count("figure") == 3
    assert f"All rows are {'harmful' if bad else 'harmless'}" in "".join(checker.words)


def test_page_without_texts_or_words() -> None:
    setup = Setup("<odd>", "answer", "0.33", 0.33, {}, texts=False)
    checker = parse(render(evaluate(outcome(*ROWS), setup)))
    assert "details" not in checker.names
    assert "<odd>" in checker.words
    assert "used" in checker.words


def test_long_texts_are_clipped() -> None:
    made = evaluate(outcome(("0." + "1" * 900, True), ("0.2", False)), SETUP)
    assert len(made["worst"]["harmful"][0]["prompt"]) < 310


# -- on the command line ------------------------------------------------------------


def test_eval_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", made_up())
    page, out = tmp_path / "page.html", tmp_path / "scores.jsonl.gz"
    args = ["eval", "detector", str(data), "--report", str(page), "--out", str(out)]
    text, told = call(capsys, monkeypatch, *args)
    assert "AUROC" in text
    assert "report: " in told
    parse(page.read_text(encoding="utf-8"))
    with gzip.open(out, "rt", encoding="utf-8") as lines:
        scored = [json.loads(line) for line in lines]
    assert len(scored) == 40
    assert set(scored[0]) == {"id", "source", "harmful", "score", "flagged", "error"}
    first = json.loads(call(capsys, monkeypatch, *args, "--json", "--seed", "1")[0])
    again = json.loads(call(capsys, monkeypatch, *args, "--json", "--seed", "1")[0])
    assert first == again
    recall = sum(row["flagged"] for row in scored if row["harmful"]) / 20
    assert first["figures"]["recall"]["value"] == pytest.approx(recall, abs=1e-4)
    assert first["data"]["fields"][str(data)]["label"] == "response_harm"


def test_eval_of_requests_and_of_several_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{k: v for k, v in row.items() if k != "source"} for row in made_up()]
    names = [str(write_rows(tmp_path / name, rows)) for name in ("a.jsonl", "b.jsonl")]
    args = ["eval", "detector", *names, "--side", "request", "--strictness", "0.4", "--no-texts"]
    text, _ = call(capsys, monkeypatch, *args, "--json")
    made = json.loads(text)
    assert set(made["sources"]) == {"a.jsonl", "b.jsonl"}
    assert made["bootstrap"]["prompts"] == 40
    assert made["threshold"] == 0.4
    assert "prompt" not in made["worst"]["harmful"][0]
    assert "by source" in call(capsys, monkeypatch, *args)[0]


def test_eval_tells_what_could_not_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made_up(6)
    rows[1]["image"] = "gone.png"
    rows[2]["category"] = "theft"
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    call(capsys, monkeypatch, "eval", "detector", data)
    seeing = ScriptedDetector(lambda sample: 0.4)
    monkeypatch.setattr("mmguard.cli.evals.load_detector", lambda name: seeing)
    text, told = call(capsys, monkeypatch, "eval", "detector", data, code=2)
    assert "by category" in text
    assert "1 rows could not be scored. They count as flagged" in told
    assert "gone.png" in told
    text, _ = call(capsys, monkeypatch, "eval", "detector", data, "--json", code=2)
    assert json.loads(text)["errors"] == 1
    call(capsys, monkeypatch, "eval", "detector", data, "--no-images")


EVAL_ERRORS = [
    (["--side", "both"], "give answer or request"),
    (["--label", "nope"], "no row has a field 'nope'"),
    (["--strictness", "hihg"], "low, medium, high"),
    (["--detector", "phrasse"], "did you mean 'phrases'"),
]


@pytest.mark.parametrize(("args", "reason"), EVAL_ERRORS)
def test_eval_errors(
    args: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl", made_up(4)))
    _, told = call(capsys, monkeypatch, "eval", "detector", data, *args, code=2)
    assert reason in told


def test_figures_of_a_shipped_detector_are_those_of_train_measure(tmp_path: Path) -> None:
    from mmguard.train.measure import load_rows, measure

    data = write_rows(tmp_path / "rows.jsonl", made_up())
    detector = load_detector("response-harm-linear")
    found = load_examples([data])
    made = Outcome(found.examples, list(score_examples(detector, found.examples)))
    medium = detector.thresholds["medium"]
    setup = Setup(detector.name, "answer", "medium", medium, detector.thresholds)
    told, trained = evaluate(made, setup), measure(detector, load_rows(data))["answer"]
    for ours, theirs in (("auroc", "auroc"), ("ece", "ece")):
        assert told["figures"][ours]["value"] == trained[theirs]
    for name in ("f1", "recall", "false_alarms"):
        assert told["figures"][name]["value"] == trained["medium"][name]
