"""A batch job: every row answered once under the policy, or rejected with its reason."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmguard.batch.folder import read_made
from mmguard.batch.job import Job, Plan
from mmguard.cli import app
from mmguard.cli.generate import patient
from mmguard.errors import InputError, ModelError
from mmguard.models.scripted import ScriptedModel
from mmguard.types import AnyRequest, Finding, Reply
from mmguard.wrap import Wrapped
from tests.world import BAD, harm_detector, make_policy, png, tempted, words


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_job(source: Path, out: Path, script: Any = tempted, **plan: Any) -> Job:
    policy = plan.pop("policy", make_policy())
    wrapped = Wrapped(ScriptedModel(script), policy, detectors={"harm": harm_detector()})
    return Job(wrapped, Plan(source, **plan), out)


def play(job: Job) -> dict[str, int]:
    for _ in job.run():
        pass
    return dict(job.counts)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        {"prompt": "harmless?", "license": "CC0-1.0"},
        {"prompt": "harmful?", "image": "a.png", "source": "there"},
        {"prompt": "harmless?"},
        {"prompt": "gone?", "image": "b.png"},
    ]
    return write(tmp_path / "rows.jsonl", rows)


def test_rows_are_answered_as_chat_answers(source: Path, tmp_path: Path) -> None:
    assert play(make_job(source, tmp_path / "out")) == {
        "pass": 1,
        "repair": 1,
        "known": 1,
        "rejected": 1,
    }
    plain, mended = read_made(tmp_path / "out")
    assert plain["action"] == "pass"
    assert plain["answer"] == plain["draft"] == "a harmless answer"
    assert plain["facts"] == {"source": "rows.jsonl", "license": "CC0-1.0"}
    assert (mended["step"], mended["closed"], mended["captions"]) == (
        "caption",
        True,
        ["a red square"],
    )
    assert mended["draft"].startswith(BAD)
    assert BAD not in mended["answer"]
    assert (mended["draft_score"], mended["answer_score"]) == (0.9, 0.1)
    assert mended["categories"] == {"hate": 0.9}
    assert mended["calls"][0]["usage"] == {"prompt": 2, "completion": 4, "cached": 0}
    [picture] = mended["pictures"]
    assert (tmp_path / "out" / picture["path"]).read_bytes() == png()
    assert mended["messages"][0]["content"][0] == {"type": "image", "image": picture["path"]}
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["number"] == 4
    assert "b.png" in json.loads(line)["reason"]


def test_a_second_run_adds_nothing_and_tries_rejects_again(source: Path, tmp_path: Path) -> None:
    play(make_job(source, tmp_path / "out"))
    before = list(read_made(tmp_path / "out"))
    assert play(make_job(source, tmp_path / "out")) == {"known": 3, "rejected": 1}
    assert list(read_made(tmp_path / "out")) == before
    (tmp_path / "b.png").write_bytes(png(9))
    assert play(make_job(source, tmp_path / "out")) == {"known": 3, "repair": 1}
    assert (tmp_path / "out" / "rejected.jsonl").read_text() == ""


def test_another_policy_does_not_mix(source: Path, tmp_path: Path) -> None:
    play(make_job(source, tmp_path / "out"))
    with pytest.raises(InputError, match="of another job, with policy"):
        make_job(source, tmp_path / "out", policy=make_policy(repair=["rewrite"]))


def broken(request: AnyRequest) -> str | Reply:
    if "2" in words(request):
        raise ModelError("out of memory")
    return "" if "3" in words(request) else "fine"


def test_what_is_no_answer_is_rejected(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": f"{i}?"} for i in range(1, 5)])
    assert play(make_job(source, tmp_path / "out", broken)) == {"pass": 2, "rejected": 2}
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    told = {json.loads(line)["number"]: json.loads(line)["reason"] for line in lines}
    assert told == {2: "out of memory", 3: "the answer is empty"}


def test_an_answer_that_no_detector_saw_is_rejected(source: Path, tmp_path: Path) -> None:
    detector = harm_detector()
    detector.script = lambda sample: Finding("harm", 0.0, error="no memory")
    wrapped = Wrapped(ScriptedModel(tempted), make_policy(), detectors={"harm": detector})
    counts = play(Job(wrapped, Plan(source), tmp_path / "out"))
    assert counts == {"rejected": 3, "known": 1}
    assert "'harm' failed: no memory" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_a_failure_that_the_policy_lets_pass_is_no_safe_data(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": "harmless?"}])
    detector = harm_detector()
    detector.script = lambda sample: Finding("harm", 0.0, error="no memory")
    policy = make_policy(on_error="pass")
    wrapped = Wrapped(ScriptedModel(tempted), policy, detectors={"harm": detector})
    assert play(Job(wrapped, Plan(source), tmp_path / "out")) == {"rejected": 1}


def test_a_step_that_failed_before_another_mended_is_no_fault(source: Path, tmp_path: Path) -> None:
    def script(request: AnyRequest) -> str | Reply:
        if "Do not answer it" in words(request):
            raise ModelError("no description today")
        return tempted(request)

    play(make_job(source, tmp_path / "out", script))
    mended = list(read_made(tmp_path / "out"))[-1]
    assert (mended["step"], mended["answer"]) == ("rewrite", "a mended answer")


def test_too_many_rejects_stop_the_job(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", **({"image": "gone.png"} if i % 4 else {})} for i in range(99)]
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=r"15 of 20 rows cannot be answered, more than 50%"):
        play(make_job(source, tmp_path / "out", rejected=0.5))
    assert play(make_job(source, tmp_path / "out", rejected=1.0))["rejected"] == 74


def test_a_stop_ends_what_is_under_way(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": f"{i}?"} for i in range(20)])
    job = make_job(source, tmp_path / "out", size=4)
    with patient(job.stop):
        for _ in job.run():
            if not job.stop.is_set():
                signal.raise_signal(signal.SIGTERM)
    assert len(list(read_made(tmp_path / "out"))) == 4
    job = make_job(source, tmp_path / "out", size=4)
    job.stop.set()
    assert play(job) == {}
    assert play(make_job(source, tmp_path / "out"))["pass"] == 16


def test_a_second_interrupt_is_at_once(tmp_path: Path) -> None:
    job = make_job(write(tmp_path / "rows.jsonl", []), tmp_path / "out")
    with patient(job.stop):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    play(job)


def test_fifty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.batch_kill", str(tmp_path), "50", "7"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    lives = json.loads(told)
    assert lives == sorted(lives)
    assert len(set(lives)) > 5, "too few lives wrote anything"
    found, plain = (list(read_made(tmp_path / name)) for name in ("out", "plain"))
    assert [row["number"] for row in found] == list(range(1, 401))
    keep = ("id", "messages", "answer", "action", "step", "facts")
    assert [[r[k] for k in keep] for r in found] == [[r[k] for k in keep] for r in plain]
    assert not list((tmp_path / "out").rglob("*.new"))


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    arguments = ["generate", str(tmp_path / "gone.jsonl"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--model", "http://127.0.0.1:9/v1"])
    assert isinstance(result.exception, InputError)
    assert "is not there" in str(result.exception)
