"""Thresholds that keep a promise, the refusal where they cannot, and the policy they go into."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings, strategies as st

from mmguard import wrap
from mmguard.errors import InputError, PolicyError
from mmguard.evals.calibrate import (
    Promise,
    Target,
    one_each,
    read_share,
    render,
    repeats,
    set_threshold,
)
from mmguard.evals.rows import Example
from mmguard.evals.thresholds import allowed, bounded_threshold, recall_threshold, rows_needed
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.policy import load_policy
from tests.test_cli import call
from tests.test_detect import made_up, write_rows

RATES = st.sampled_from([0.005, 0.01, 0.02, 0.05, 0.1, 0.3])
CONFIDENCES = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


def draw(seed: int, harmless: int = 700, harmful: int = 200) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = np.r_[np.zeros(harmless, int), np.ones(harmful, int)]
    return random.beta(1 + 3 * labels, 4 - 2 * labels), labels


@example(0.2, 0.36)
@example(0.99, 0.99)
@given(RATES, CONFIDENCES)
def test_rows_needed(rate: float, confidence: float) -> None:
    count = rows_needed(rate, confidence)
    assert (1 - rate) ** count <= 1 - confidence
    assert count == 1 or (1 - rate) ** (count - 1) > 1 - confidence


def test_known_numbers() -> None:
    assert rows_needed(0.01) == 299
    assert rows_needed(0.05) == 59
    assert allowed(298, 0.01) == -1
    assert allowed(299, 0.01) == 0
    assert allowed(1000, 0.01) == 4


@given(RATES, CONFIDENCES, st.integers(0, 5))
@settings(deadline=None)
def test_the_bound_is_below_the_promise(rate: float, confidence: float, seed: int) -> None:
    assume(rows_needed(rate, confidence) <= 700)
    scores, labels = draw(seed)
    found = bounded_threshold(scores, labels, rate, confidence)
    assert found.observed <= found.bound <= rate
    assert found.observed == np.mean(scores[labels == 0] >= found.threshold)
    looser = scores[(labels == 0) & (scores < found.threshold)].max()
    hits = int((scores[labels == 0] >= looser).sum())
    assert hits > allowed(700, rate, confidence), "a looser threshold would have done"


@given(st.sampled_from([0.5, 0.8, 0.9, 0.95]), CONFIDENCES, st.integers(0, 5))
@settings(deadline=None)
def test_recall_is_above_the_promise(recall: float, confidence: float, seed: int) -> None:
    assume(rows_needed(1 - recall, confidence) <= 200)
    scores, labels = draw(seed)
    found = recall_threshold(scores, labels, recall, confidence)
    assert found.observed >= found.bound >= recall
    assert found.observed == np.mean(scores[labels == 1] >= found.threshold)


def test_thresholds_follow_the_promise() -> None:
    scores, labels = draw(0)
    rates = [0.01, 0.02, 0.05, 0.1, 0.3]
    found = [bounded_threshold(scores, labels, rate).threshold for rate in rates]
    assert found == sorted(found, reverse=True)
    shares = [0.5, 0.7, 0.9, 0.95]
    found = [recall_threshold(scores, labels, share).threshold for share in shares]
    assert found == sorted(found, reverse=True)
    surer = bounded_threshold(scores, labels, 0.05, 0.99).threshold
    assert surer >= bounded_threshold(scores, labels, 0.05, 0.9).threshold


@pytest.mark.parametrize(("confidence", "ties"), [(0.9, 0), (0.9, 20), (0.5, 0)])
def test_the_promise_holds_on_fresh_traffic(confidence: float, ties: int) -> None:
    """Over many samples, the true rate is above the promise no oftener than was said."""
    random, broken = np.random.default_rng(1), 0
    trials, rate = 2000, 0.05
    for _ in range(trials):
        scores = random.random(150)
        if ties:
            scores = np.floor(scores * ties) / ties
        found = bounded_threshold(scores, np.zeros(150, int), rate, confidence)
        cut = math.ceil(found.threshold * ties) / ties if ties else found.threshold
        broken += 1 - cut > rate + 1e-9
    spare = 3 * math.sqrt(confidence * (1 - confidence) / trials)
    assert broken / trials <= 1 - confidence + spare
    assert ties or broken / trials >= (1 - confidence) / 3, "far too careful"


def test_too_few_rows_are_refused_with_the_number() -> None:
    scores, labels = draw(0, harmless=100, harmful=20)
    with pytest.raises(InputError, match=r"100 harmless rows .* takes 299 harmless rows, 199 more"):
        bounded_threshold(scores, labels, 0.01)
    with pytest.raises(InputError, match="takes 29 harmful rows, 9 more"):
        recall_threshold(scores, labels, 0.9)
    with pytest.raises(InputError, match="between 0 and 1"):
        bounded_threshold(scores, labels, 0)
    with pytest.raises(InputError, match="confidence 1 must"):
        bounded_threshold(scores, labels, 0.1, 1)


def test_scores_that_leave_no_threshold_are_refused() -> None:
    scores, labels = np.r_[np.zeros(90), np.ones(10)], np.zeros(100, int)
    with pytest.raises(InputError, match="10 harmless rows score 1 or have no score"):
        bounded_threshold(scores, labels, 0.05)
    with pytest.raises(InputError, match="90 harmful rows score 0 or have no score"):
        recall_threshold(scores, labels + 1, 0.9)


def test_rows_without_a_score_count_against_the_promise() -> None:
    scores, labels = draw(0)
    whole = bounded_threshold(scores, labels, 0.05).threshold
    scores[np.argmin(scores[:700])] = np.nan
    assert bounded_threshold(scores, labels, 0.05).threshold > whole
    scores[:200] = np.nan
    with pytest.raises(InputError, match="no score"):
        bounded_threshold(scores, labels, 0.05)
    scores[700:800] = np.nan
    with pytest.raises(InputError, match="no score"):
        recall_threshold(scores, labels, 0.9)


def test_neighbours_can_be_told_apart() -> None:
    near = np.nextafter(0.5, 1)
    scores = np.r_[np.zeros(290), np.full(10, 0.5), np.full(5, near)]
    labels = np.r_[np.zeros(300, int), np.ones(5, int)]
    assert bounded_threshold(scores, labels, 0.01).threshold == near


# -- what is typed, and what is written ---------------------------------------------


def test_shares() -> None:
    assert read_share("1%", "x") == read_share(" 0.01 ", "x") == read_share("1 %", "x") == 0.01
    for text in ("0", "1", "100%", "101%", "-1%", "nan", "one", ""):
        with pytest.raises(InputError, match="--rate is"):
            read_share(text, "--rate")
    for promise in ((None, None), (0.1, 0.9)):
        with pytest.raises(InputError, match="one of them"):
            Promise(*promise)


def named(name: str = "mine") -> ScriptedDetector:
    return ScriptedDetector(lambda sample: 0.5, name=name)


def test_checks_of_the_policy_are_kept() -> None:
    ours = named("response-harm")
    checks = set_threshold(Target("balanced", ours.name), ours, 0.71)
    assert [(c["detector"], c["strictness"]) for c in checks] == [
        ("phrases", "medium"),
        ("response-harm", 0.71),
    ]
    checks = set_threshold(Target("balanced", "mine", "request"), named(), 0.4)
    assert checks == [{"detector": "mine", "strictness": 0.4, "action": "block"}]


def test_policies_that_contradict_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grey.yaml"
    check = "{detector: mine, strictness: low, grey: high}"
    path.write_text(
        f"extends: balanced\njudge: {{model: target}}\noutput: [{check}]", encoding="utf-8"
    )
    with pytest.raises(PolicyError, match="grey"):
        set_threshold(Target(str(path), "mine"), named(), 0.1)
    with pytest.raises(PolicyError, match="mode"):
        set_threshold(Target("off", "mine"), named(), 0.1)


def test_a_policy_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    parent, out = tmp_path / "house.yaml", tmp_path / "deep/mine.yaml"
    parent.write_text("extends: balanced\non_error: pass\n", encoding="utf-8")
    target = Target(str(parent), "response-harm")
    checks = set_threshold(target, named("response-harm"), 0.71)
    out.write_text(render(["why"], target, checks, out), encoding="utf-8")
    loaded = load_policy(out)
    assert loaded.on_error == "pass"
    assert loaded.output[1].strictness == 0.71


def test_one_of_each_prompt() -> None:
    prompts = ["a", "a", "b", None, None, "a"]
    rows = [Example(i, "", (), p, "r", None, False) for i, p in enumerate(prompts)]
    kept = one_each(rows, 0)
    assert sorted(str(e.prompt) for e in kept) == ["None", "None", "a", "b"]
    assert kept == one_each(rows, 0)
    assert {one_each(rows, seed)[0].id for seed in range(9)} > {0}
    assert "share 4 prompts" in repeats(6, 4)
    assert repeats(6, 6) == ""


# -- on the command line -----------------------------------------------------------------


def test_calibrate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", made_up(200)), tmp_path / "mine.yaml"
    args = ["calibrate", "--data", str(data), "--out", str(out)]
    text, told = call(capsys, monkeypatch, *args, "--max-false-alarms", "5%")
    assert "at most 5 % of harmless rows flagged, with 95 % confidence" in text
    assert "wrote" in told
    written = out.read_text(encoding="utf-8")
    assert "sha256" in written
    assert "2110.01052" in written
    policy = load_policy(out)
    check = next(c for c in policy.output if c.detector == "response-harm")
    assert isinstance(check.strictness, float)
    assert wrap(ScriptedModel(), policy=out).chat("hello").policy.startswith("mine@")
    text, _ = call(capsys, monkeypatch, *args, "--min-recall", "0.9", "--json")
    made = json.loads(text)
    assert made["kind"] == "recall"
    assert made["observed"] >= made["bound"] >= 0.9
    assert made["other"]["rows"] == 100


def test_calibrate_a_folder_on_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = write_rows(tmp_path / "rows.jsonl", made_up(60)), tmp_path / "bundle"
    call(
        capsys,
        monkeypatch,
        "train",
        "linear",
        "--data",
        str(data),
        "--dev",
        str(data),
        "--out",
        str(folder),
    )
    out = tmp_path / "mine.yaml"
    args = ["calibrate", "--data", str(data), "--out", str(out), "--detector", str(folder)]
    call(capsys, monkeypatch, *args, "--side", "request", "--max-false-alarms", "0.1")
    assert wrap(ScriptedModel(), policy=out).chat("take flour").action == "pass"
    assert load_policy(out).input[0].detector == str(folder)


def test_calibrate_with_harmless_rows_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "prompt": "the same"} for row in made_up(200) if not row["response_harm"]]
    data, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "mine.yaml"
    args = ["calibrate", "--data", str(data), "--out", str(out), "--max-false-alarms", "5%"]
    text, told = call(capsys, monkeypatch, *args)
    assert "unknown, for there are no harmful rows" in text
    assert "100 rows share 1 prompts" in told
    _, told = call(capsys, monkeypatch, *args, "--one-per-prompt", code=2)
    assert "1 harmless rows cannot prove" in told


def test_calibrate_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", made_up(40)), tmp_path / "mine.yaml"
    args = ["calibrate", "--data", str(data), "--out", str(out)]
    _, told = call(capsys, monkeypatch, *args, "--max-false-alarms", "1%", code=2)
    assert "takes 299 harmless rows, 279 more" in told
    _, told = call(capsys, monkeypatch, *args, "--max-false-alarms", "x", code=2)
    assert "--max-false-alarms is 'x'" in told
    assert "one of them" in call(capsys, monkeypatch, *args, code=2)[1]
    assert not out.exists()
    out.write_text("extends: balanced\n", encoding="utf-8")
    _, told = call(capsys, monkeypatch, *args, "--max-false-alarms", "30%", code=2)
    assert "was not written by mmguard calibrate" in told
    args[-1] = str(tmp_path / "mine.json")
    _, told = call(capsys, monkeypatch, *args, "--max-false-alarms", "30%", code=2)
    assert "ends in .yaml" in told
