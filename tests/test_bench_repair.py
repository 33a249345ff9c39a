"""What repairs cost: which calls each policy makes, what they read and write, and what is told."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmguard.bench.llava import EOS, Size, make_llava
from mmguard.bench.repair import (
    Plans,
    Run,
    bench_repair,
    make_requests,
    meter,
    open_subject,
)
from mmguard.bench.script import Lengths, Overruled, Script, measure_lengths
from mmguard.errors import InputError
from mmguard.models.hf import HFModel
from mmguard.models.scripted import ScriptedDetector
from mmguard.prompts import PLAN_OPTIONS
from mmguard.types import Finding, Request, Sample
from tests.world import ask

SMALL = Size(layers=1, width=32, side=112)
SHORT = Lengths(draft=12, caption=8, repair=6)


def measure(**fields: Any) -> dict[str, Any]:
    run = Run(open_subject("random", SMALL), Plans(rounds=1, lengths=SHORT, **fields))
    return bench_repair(run, "random", list(run.rounds()))


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return measure(mixed=0.25)


def test_a_picture_takes_its_patches_and_answers_never_end() -> None:
    model, processor = make_llava(SMALL)
    reply = HFModel(model, processor).generate([requested()])[0]
    assert reply.usage.prompt > SMALL.patches == 64
    assert (reply.usage.completion, reply.finish) == (12, "length")
    assert EOS not in reply.tokens
    assert len(reply.text.split()) == 12
    assert Size().patches == 576


def requested() -> Request:
    return make_requests(SHORT)["harmful"][0]


def test_a_draft_as_long_as_a_plan_is_none() -> None:
    """A mended answer once took the plan's length where the draft's was 256 too."""
    lengths = Lengths(draft=PLAN_OPTIONS["max_tokens"], caption=1, repair=2)
    run = Run(open_subject("random", SMALL), Plans(("balanced",), lengths=lengths))
    target = run.arms[1].target
    target.asked = asked = run.harmful[0]
    assert target.stage(replace(asked, messages=asked.messages[:0])) == "repair"


def test_lengths_are_those_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"harmful": "one two three four", "safe": "one"}\n{"harmful": "one two", "safe": "a b c"}'
    )
    assert measure_lengths(path, 9) == Lengths(3, 9, 2)


@pytest.mark.parametrize(
    ("text", "told"), [("", "has no rows"), ('{"harmful": "a"}', ":1: a row needs"), ("{", ":1")]
)
def test_what_are_no_pairs_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        measure_lengths(path, 9)


def test_equal_seeds_make_equal_models() -> None:
    texts = {HFModel(*make_llava(SMALL, seed)).generate([requested()])[0].text for seed in (1, 1)}
    assert len(texts) == 1
    assert texts != {HFModel(*make_llava(SMALL, 2)).generate([requested()])[0].text}


def test_what_each_policy_calls(report: dict[str, Any]) -> None:
    calls = {
        kind: {arm: cost["calls"] for arm, cost in arms.items() if "no reuse" not in arm}
        for kind, arms in report["per_answer"].items()
    }
    assert calls["harmless"] == {"off": 1, "ecso": 2, "protector": 1, "balanced": 1}
    assert calls["harmful"] == {"off": 1, "ecso": 5, "protector": 2, "balanced": 3}
    assert calls["mixed"] == {"off": 1, "ecso": 2.75, "protector": 1.25, "balanced": 1.5}


def test_lengths_are_those_asked_for(report: dict[str, Any]) -> None:
    made = {arm: cost["generated"] for arm, cost in report["per_answer"]["harmful"].items()}
    assert (made["off"], made["protector"]) == (12, 18)
    assert made["balanced"] == 12 + 8 + 6
    # Two words of the judge, two tokens each.
    assert made["ecso"] == 12 + 8 + 6 + 4


def test_every_harmful_draft_is_mended_and_no_other(report: dict[str, Any]) -> None:
    counts = report["outcomes"]
    assert all(found == {"pass": 3} for found in counts["harmless"].values())
    assert counts["harmful"].pop("off") == {"pass": 3}
    assert counts["harmful"].pop("protector") == {"detoxify": 3}
    assert all(found == {"caption": 3} for found in counts["harmful"].values())


def test_a_picture_is_read_once(report: dict[str, Any]) -> None:
    """With memory the captions read at least their pictures less."""
    saved = report["reuse"]["balanced"]["caption"]
    assert saved["read_whole"] - saved["read"] >= 64 * 3
    assert saved["cut"] == pytest.approx(1 - saved["read"] / saved["read_whole"], abs=1e-4)
    assert set(report["reuse"]) == {"ecso", "balanced"}
    for arms in report["per_answer"].values():
        assert arms["off"]["read"] == arms["off"]["prompt"]
        assert arms["ecso"]["read"] < arms["ecso, no reuse"]["read"]


def test_ratios_are_to_no_guard(report: dict[str, Any]) -> None:
    costs, ratios = report["per_answer"]["harmful"], report["ratios"]["harmful"]
    assert "off" not in ratios
    for arm, found in ratios.items():
        for name in ("generated", "read", "calls", "seconds"):
            expected = costs[arm][name] / costs["off"][name]
            assert found[name]["median"] == pytest.approx(expected, rel=1e-2)
    assert costs["balanced"]["detector_s"] > 0
    assert costs["balanced"]["seconds"] > costs["balanced"]["detector_s"]
    assert (costs["off"]["detector_s"], costs["ecso"]["detector_s"]) == (0, 0)


def test_streams_cost_the_same_tokens(report: dict[str, Any]) -> None:
    found = measure(stream=True, policies=("balanced",))["per_answer"]["harmful"]["balanced"]
    expected = report["per_answer"]["harmful"]["balanced"]
    for name in ("prompt", "read", "generated", "calls"):
        assert found[name] == expected[name]


def test_a_stream_that_is_closed_costs_what_it_took() -> None:
    counted = meter(HFModel(*make_llava(SMALL)), 4)
    whole = replace(requested(), options={"max_tokens": 400, "temperature": 0})
    with closing(counted.stream(whole)) as pieces:
        next(pieces)
    [cost] = counted.costs
    assert (cost.calls, cost.prompt) == (1, cost.read)
    assert cost.prompt > 64
    assert 0 < cost.generated < 400


# -- the script -----------------------------------------------------------------


def test_a_draft_is_flagged_once_enough_of_it_is_there() -> None:
    script = Script(0.5)
    script.marked = ["abcdefgh"]
    assert [script.flags("abcdefgh"[:n]) for n in (0, 3, 4, 8)] == [False, False, True, True]
    assert not script.flags("bcdefg")
    assert not script.flags("abcdefgh and more")
    assert script.mentions("it answered: abcd...")
    assert not script.mentions("it answered: abc...")


def test_a_detector_is_overruled_after_its_work() -> None:
    script, seen = Script(1), ScriptedDetector(lambda sample: Finding("real", 0.7))
    script.marked = ["bad"]
    detector = Overruled(seen, script)
    found = detector.score([Sample(ask("x"), "bad"), Sample(ask("x"), "good"), Sample(ask("x"))])
    assert [finding.score for finding in found] == [1.0, 0.0, 0.0]
    assert len(seen.seen) == 3
    assert detector.seconds > 0
    assert detector.thresholds == seen.thresholds


def test_a_detector_that_fails_still_fails() -> None:
    script = Script(1)
    broken = ScriptedDetector(lambda sample: Finding("real", 1.0, error="no"))
    assert Overruled(broken, script).score([Sample(ask("x"), "good")])[0].error == "no"


# -- the command ----------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmguard.cli import app

    path = tmp_path / "repair.json"
    size = ["--layers", "1", "--width", "32", "--side", "112"]
    lengths = ["--draft", "6", "--caption", "4", "--repaired", "4", "--rounds", "1"]
    arguments = ["bench", "repair", *size, *lengths, "--policy", "balanced", "--json", str(path)]
    app(arguments, standalone_mode=False)
    told = capsys.readouterr().out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["plans"]["lengths"] == {"draft": 6, "caption": 4, "repair": 4}
    assert found["machine"]["cores"] > 0
    assert found["machine"]["parameters"] > 0
    assert "Verdicts are scripted" in told
    assert "tokens not read again: caption" in told
    assert "harmful answers: off: pass 3; balanced: caption 3" in told
