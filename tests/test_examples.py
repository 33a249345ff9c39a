"""Every example runs, and so does the README's code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples import own_detector, quickstart
from mmguard.bundles import load_bundle, shipped
from mmguard.models.hf import HFModel
from tests.tiny import build
from tests.world import png

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^mmguard (\w+)", README, re.MULTILINE)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny LLaVA on disk, as a user's own model is."""
    tiny = build("llava")
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "photo.png").write_bytes(png(60, 48))
    return tmp_path


def test_quickstart(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart.main(str(saved / "model"), str(saved / "photo.png"), "what is it?")
    assert "by balanced@" in capsys.readouterr().err


def test_own_detector() -> None:
    assert own_detector.main() == "I can't repeat card numbers."


def test_readme_code(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert len(BLOCKS) >= 2
    loaded = HFModel.load(str(saved / "model"))
    names: dict[str, object] = {"model": loaded.model, "processor": loaded.processor}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)


def test_readme_names_real_commands() -> None:
    from mmguard.cli import app

    known = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    known |= {group.name for group in app.registered_groups if group.name}
    assert set(COMMANDS) <= known
    assert COMMANDS


def test_readme_tells_the_measured_figures() -> None:
    for name in shipped():
        assert figures_row(name) in README, f"the README should say: {figures_row(name)}"


def figures_row(name: str) -> str:
    bundle = load_bundle(name)
    found = json.loads((bundle.folder / "eval.json").read_text(encoding="utf-8"))["answer"]
    at = found["medium"]
    figures = [at["f1"], at["recall"], at["false_alarms"], found["auroc"]]
    cells = [f"`{name}`", bundle.manifest.description, *(f"{figure:.3f}" for figure in figures)]
    return f"| {' | '.join(cells)} |"
