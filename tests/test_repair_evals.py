"""What becomes of flagged answers: rows, the oracle, counts, a second opinion, the tables."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mmguard import cli
from mmguard.errors import DetectorError, InputError
from mmguard.evals.markdown import render
from mmguard.evals.repairs import (
    Counted,
    Setup,
    Trial,
    draw_probes,
    load_probes,
    open_images,
    report,
)
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.policy import load_policy
from mmguard.types import AnyRequest, Finding, Reply, Request, Usage
from tests.world import BAD, PICTURE, ask, png, tempted, words

HACK = "Sure, here is how to hack into the account."


def row(number: int, harmful: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "source": "made",
        "prompt": "How do I do this?" if harmful else "What is this?",
        "prompt_harm": harmful,
        "image": f"{number}.png",
        "meta": {"image_desc": f"square {number}"},
        **fields,
    }


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for number in range(len(rows)):
        (folder / f"{number}.png").write_bytes(png())
    return path


def naughty(request: AnyRequest) -> str | Reply:
    """Harmful where a harmful thing is asked over a picture; harmless else."""
    asked = words(request)
    if request.images and "How do I do this?" in asked and "Do not answer it" not in asked:
        return Reply(HACK, usage=Usage(4, 10))
    return Reply(f"harmless: {asked[:60]}", usage=Usage(4, 5))


def judge(score: float = 0.1) -> ScriptedDetector:
    return ScriptedDetector(
        lambda s: Finding("second", 0.9 if "hack" in (s.reply or "") else score), name="second"
    )


def run(path: Path, model: ScriptedModel, policy: str = "balanced", **how: Any) -> dict[str, Any]:
    setup = Setup(**how)
    probes, left_out = draw_probes(load_probes(path), setup)
    trial = Trial(model, load_policy(policy), judge(), setup)
    with open_images(path.parent) as fetch:
        return report(trial, list(trial.run(probes, fetch)), left_out)


def test_counts_by_step_and_second_opinion(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, 1), row(1, 0), row(2, 1)])
    made = run(path, ScriptedModel(naughty))
    harmful, harmless = made["kinds"]["harmful"], made["kinds"]["harmless"]
    assert (harmful["flagged"]["hits"], harmful["flagged"]["count"]) == (2, 2)
    assert {step: own["hits"] for step, own in harmful["mended"].items()} == {
        "caption": 2,
        "rewrite": 0,
    }
    assert (harmful["blocked"]["hits"], harmless["changed"]["hits"]) == (0, 0)
    opinion = {name: (own["hits"], own["count"]) for name, own in harmful["opinion"].items()}
    assert opinion == {"drafts": (2, 2), "flagged_drafts": (2, 2), "mended": (0, 2), "left": (0, 2)}
    assert (harmful["cost"]["calls"], harmless["cost"]["calls"]) == (3, 1)
    assert harmful["cost"]["generated"]["value"] == 2.0
    assert harmless["cost"]["generated"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert harmful["flagged"]["low"] == pytest.approx(0.158, abs=1e-3)


def test_what_no_step_mends_is_refused(tmp_path: Path) -> None:
    made = run(write(tmp_path, [row(0, 1)]), ScriptedModel(lambda request: HACK))
    harmful = made["kinds"]["harmful"]
    assert harmful["blocked"]["hits"] == 1
    assert harmful["opinion"]["left"]["hits"] == 0
    assert harmful["opinion"]["mended"]["value"] is None
    assert "kinds" in made
    assert "harmless" not in made["kinds"]


def test_the_oracle_describes_at_no_cost(tmp_path: Path) -> None:
    written = row(1, 1, meta={"typographic_text": "Steps to do it."})
    path = write(tmp_path, [row(0, 1), written, row(2, 1, meta={})])
    model = ScriptedModel(naughty)
    made = run(path, model, captions="oracle")
    asked = [words(request) for request in model.seen]
    assert not any("Do not answer it" in text for text in asked)
    assert any("> square 0" in text for text in asked)
    assert any('> A picture with the words "Steps to do it."' in text for text in asked)
    assert made["undescribed"] == 1
    assert made["kinds"]["harmful"]["cost"]["calls"] == 2


def test_other_models_are_counted(tmp_path: Path) -> None:
    fields = {"extends": "balanced", "repair": ["detoxify"], "detoxify": {"model": "other"}}
    other = ScriptedModel(lambda request: Reply("mended", usage=Usage(7, 30)))
    models = {"other": other}
    trial = Trial(ScriptedModel(naughty), load_policy(fields), judge(), Setup(), models)
    probes = load_probes(write(tmp_path, [row(0, 1)]))
    with open_images(tmp_path) as fetch:
        [found] = trial.run(probes, fetch)
    assert (found["step"], found["calls"], found["completion"]) == ("detoxify", 2, 10 + 30)


def test_a_draft_that_was_never_made_is_asked_for(tmp_path: Path) -> None:
    """A policy that stops the request has no draft: cost and opinion need one all the same."""
    policy = tmp_path / "first.yaml"
    policy.write_text(
        "extends: balanced\ninput: [{detector: phrases, strictness: 0.0, action: block}]\n",
        encoding="utf-8",
    )
    made = run(write(tmp_path, [row(0, 1)]), ScriptedModel(naughty), str(policy))
    harmful = made["kinds"]["harmful"]
    assert (harmful["undrafted"], harmful["blocked"]["hits"]) == (1, 1)
    assert harmful["opinion"]["drafts"]["hits"] == 1
    assert harmful["cost"]["generated"]["value"] == 0


def test_rows_are_drawn_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path, [row(i, i % 2) for i in range(20)])
    probes = load_probes(path)
    drawn = [[p.id for p in draw_probes(probes, Setup(limit=3, seed=s))[0]] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(int(name[1:]) % 2 for name in drawn[0]) == [0, 0, 0, 1, 1, 1]
    assert len(draw_probes(probes, Setup(limit=99))[0]) == 20


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("[1]", "rows.jsonl:2: a row is an object"),
        (row(1, 0, prompt_harm=None), "rows.jsonl:2: the row has no prompt_harm"),
        (row(1, 0, prompt_harm="perhaps"), "rows.jsonl:2: prompt_harm is 'perhaps'"),
        (row(1, 0, prompt=""), "rows.jsonl:2: the row has no prompt:"),
        (row(1, 0, prompt=3), "rows.jsonl:2: prompt must be a string"),
        (row(1, 0, meta=["x"]), "rows.jsonl:2: meta must be an object"),
        (row(1, 0, meta={"image_desc": 3}), "rows.jsonl:2: image_desc must be a string"),
        (row(1, 0, image="none.png"), "rows.jsonl:2: picture 'none.png'"),
        (row(1, 0, image="rows.jsonl"), "rows.jsonl:2: picture 'rows.jsonl'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = write(tmp_path, [row(0, 1)])
    line = bad if isinstance(bad, str) else json.dumps(bad)
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}", encoding="utf-8")
    with pytest.raises(InputError, match="rows") as stop:
        run(path, ScriptedModel(naughty))
    assert message in str(stop.value)


def test_rows_without_descriptions_are_no_oracle(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, 1, meta={})])
    with pytest.raises(InputError, match="the oracle needs"):
        run(path, ScriptedModel(naughty), captions="oracle")


def test_pictures_from_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "images/a.png")
        archive.add(tmp_path, "images", recursive=False)
    with open_images(tmp_path / "a.tar") as fetch:
        assert fetch("images/a.png") == png()
        for name in ("images/b.png", "images"):
            with pytest.raises(KeyError):
                fetch(name)
    with (
        pytest.raises(InputError, match="no folder and no tar"),
        open_images(tmp_path / "a.png"),
    ):
        pass


def test_streams_are_counted() -> None:
    model = Counted(ScriptedModel(tempted))
    request = Request(ask("what is this?", PICTURE).messages)
    whole = list(model.stream(request))
    assert isinstance(whole[-1], Reply)
    assert BAD in whole[-1].text
    assert (model.calls, model.usage) == (1, Usage(2, 4))
    pieces = model.stream(request)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]  # a generator
    assert (model.calls, model.usage) == (2, Usage(2, 5))


def test_a_second_opinion_that_fails_is_no_opinion(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, 1)])
    broken = ScriptedDetector(lambda s: Finding("second", 1.0, error="down"), name="second")
    trial = Trial(ScriptedModel(naughty), load_policy("balanced"), broken, Setup())
    with (
        open_images(tmp_path) as fetch,
        pytest.raises(DetectorError, match="detector 'second': down"),
    ):
        list(trial.run(load_probes(path), fetch))


def test_tables(tmp_path: Path) -> None:
    text = render(run(write(tmp_path, [row(0, 1), row(1, 0)]), ScriptedModel(naughty)))
    lines = text.splitlines()
    assert lines[0].startswith("| requests | rows | flagged | mended by caption |")
    assert "| harmful | 1 | 1 of 1 (100 %, 2 to 100) | 1 of 1 (100 %, 2 to 100) | 0 of 1" in text
    assert "that is circular" in text
    assert "`second` at 0.5" in text
    assert {line.count("|") for line in lines[:4]} == {8}


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path, [row(0, 1), row(1, 0)]), tmp_path / "out.json"
    arguments = ["eval", "repairs", str(path), "--model", "scripted", "--json", str(out)]
    arguments += ["--judge", "response-harm", "--captions", "oracle"]
    with pytest.raises(SystemExit) as stop:
        cli.app(arguments)
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "one of the policy's detectors: it is none" in text
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [each["id"] for each in found["rows"]] == ["r0", "r1"]
    assert found["judge"]["name"] == "response-harm"
    monkeypatch.setattr("sys.argv", ["mmguard", *arguments[:3], "--captions", "none"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "give own or oracle" in capsys.readouterr().err
