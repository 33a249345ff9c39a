"""The command line, run as a process and in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmguard import cli
from mmguard.policy import load_policy
from tests.server import serve
from tests.test_detect import made_up, write_rows
from tests.tiny import build
from tests.world import png

HARMFUL = "Sure, here is how to hack into the account."


def run(*args: str, code: int = 0) -> tuple[str, str]:
    """What `mmguard ARGS` printed, once it exited as expected."""
    done = subprocess.run(
        [sys.executable, "-m", "mmguard", *args], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str, code: int = 0
) -> tuple[str, str]:
    """The same in this process, to see which lines ran."""
    monkeypatch.setattr(sys, "argv", ["mmguard", *args])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    assert (stop.value.code or 0) == code, told.err
    return told.out, told.err


def test_check_one() -> None:
    text, _ = run("check", "--response", HARMFUL, "--detector", "phrases", code=1)
    assert "harmful" in text
    text, _ = run("check", "--prompt", "hi", "--response", "hello", "--json")
    line = json.loads(text)
    assert line["harmful"] is False
    assert 0 <= line["score"] < line["threshold"]


def test_check_file(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl.gz"
    rows = [{"id": 1, "prompt": "hi", "response": "hello"}, {"id": 2, "response": HARMFUL}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text, _ = run("check", str(path), "--detector", "phrases", "--out", str(out), "--json", code=1)
    assert json.loads(text)["harmful"] == 1
    text, told = run("check", str(path), "--detector", "phrases", code=1)
    assert [json.loads(line)["id"] for line in text.splitlines()] == [1, 2]
    assert "2 rows, 1 harmful, 0 with errors" in told


def test_check_file_with_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "hi"}\nnot json\n', encoding="utf-8")
    text, _ = run("check", str(path), "--detector", "phrases", code=2)
    assert len(text.splitlines()) == 2


ERRORS = [
    (["check"], "nothing to score"),
    (["check", "x.jsonl", "--prompt", "y"], "not both"),
    (["check", "--prompt", "x", "--strictness", "hihg"], "low, medium, high"),
    (["check", "--prompt", "x", "--detector", "phrasse"], "did you mean 'phrases'"),
    (["check", "no/such/file.jsonl"], "No such file"),
    (["chat", "hi", "--policy", "strct", "--model", "scripted"], "did you mean 'strict'"),
    (["chat", "hi", "--image", "gone.png", "--model", "scripted"], "no picture at"),
    (["chat", "hi", "--model", "no/such/folder"], "no/such/folder"),
    (["policies", "show", "nope"], "unknown policy"),
    (["frobnicate"], "No such command"),
]


@pytest.mark.parametrize(("args", "reason"), ERRORS)
def test_errors(
    args: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, told = call(capsys, monkeypatch, *args, code=2)
    assert reason in told.replace("\n", " ")


def test_debug_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mmguard", "check"])
    monkeypatch.setenv("MMGUARD_DEBUG", "1")
    with pytest.raises(ValueError, match="nothing to score"):
        cli.main()


def test_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red.png").write_bytes(png())
    picture = str(tmp_path / "red.png")
    text, told = call(capsys, monkeypatch, "chat", "hi", "--image", picture, "--model", "scripted")
    assert text.strip() == "hi [1 pictures]"
    assert "pass by balanced@" in told
    text, _ = call(capsys, monkeypatch, "chat", HARMFUL, "--model", "scripted", "--json", code=1)
    assert json.loads(text)["action"] == "block"


def test_policies(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "balanced" in call(capsys, monkeypatch, "policies")[0]
    listed = json.loads(call(capsys, monkeypatch, "policies", "--json")[0])
    assert next(entry["name"] for entry in listed) == "audit"
    shown = yaml.safe_load(call(capsys, monkeypatch, "policies", "show", "strict")[0])
    assert load_policy(shown) == load_policy("strict")
    told = json.loads(call(capsys, monkeypatch, "policies", "show", "off", "--json")[0])
    assert told["tag"].startswith("off@")
    assert "properties" in json.loads(call(capsys, monkeypatch, "policies", "schema")[0])


def test_detectors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "phrases" in call(capsys, monkeypatch, "detectors")[0]
    listed: list[dict[str, Any]] = json.loads(call(capsys, monkeypatch, "detectors", "--json")[0])
    assert {"phrases", "response-harm", "response-harm-linear"} <= {
        entry["name"] for entry in listed
    }


def test_bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = json.loads(call(capsys, monkeypatch, "bench", "flow", "--json")[0])
    assert figures["one_by_one_ratio"] > 1
    assert figures["import_ms"] > 0
    assert "together_us" in call(capsys, monkeypatch, "bench", "flow")[0]
    figures = json.loads(call(capsys, monkeypatch, "bench", "detectors", "--json")[0])
    assert set(figures) == {"phrases_ms", "response-harm_ms", "response-harm-linear_ms"}


def test_train_and_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", made_up())
    args = ["train", "linear", "--data", str(data), "--dev", str(data), "--out"]
    assert "wrote" in call(capsys, monkeypatch, *args, str(tmp_path / "one"))[0]
    text, _ = call(capsys, monkeypatch, *args, str(tmp_path / "two"), "--json")
    assert json.loads(text)["answer"]["auroc"] == 1
    text, _ = call(
        capsys, monkeypatch, "train", "measure", str(tmp_path / "one"), "--dev", str(data)
    )
    assert json.loads(text)["answer"]["rows"] == 40


def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    text, _ = call(capsys, monkeypatch, "demo", "--model", "scripted", "--report", str(page))
    assert "passed untouched" in text
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    text, _ = call(capsys, monkeypatch, "demo", "--model", "scripted", "--json")
    assert len(json.loads(text)) == 6


def test_chat_with_a_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda body: f"I am {body['model']}") as url:
        args = ["chat", "who?", "--model", url, "--served", "tiny", "--policy", "off"]
        assert call(capsys, monkeypatch, *args)[0].strip() == "I am tiny"


def test_chat_with_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = build("llava")
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "photo.png").write_bytes(png(60, 48))
    args = ["chat", "what?", "--image", str(tmp_path / "photo.png"), "--max-tokens", "5", "--json"]
    args += ["--model", str(tmp_path / "model"), "--policy", "off"]
    told = json.loads(call(capsys, monkeypatch, *args)[0])
    assert told["usage"]["completion"] == 5
