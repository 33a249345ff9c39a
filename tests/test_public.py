"""What a user can rely on: the names, what an import costs, the files' shape."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmguard
from mmguard.errors import MissingExtra, MmguardError, UnknownName

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "mmguard").rglob("*.py"))
HEAVY = ["torch", "transformers", "onnxruntime", "PIL", "fastapi", "httpx", "rich", "pydantic"]


def test_names() -> None:
    assert mmguard.__all__ == sorted(mmguard.__all__, key=lambda n: (n[0].islower(), n))
    assert len(mmguard.__all__) <= 20
    for name in mmguard.__all__:
        assert getattr(mmguard, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = mmguard.nothing


def test_import_is_light() -> None:
    code = f"import mmguard, sys; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_nothing_is_reported_to_anybody(given: str | None, kept: str) -> None:
    """By the runtime of the detectors, unless whoever deploys them says so."""
    name = "ORT_DISABLE_TELEMETRY"
    known = {key: value for key, value in os.environ.items() if key != name}
    asked = [sys.executable, "-c", f"import mmguard, os; print(os.environ[{name!r}])"]
    environment = known if given is None else {**known, name: given}
    found = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == kept


def test_errors_are_one_family() -> None:
    assert issubclass(UnknownName, MmguardError | LookupError)
    assert "pip install 'mmguard[hf]'" in str(MissingExtra("torch", "hf", "this"))


def test_version_and_changelog_agree() -> None:
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (\S+)", log, re.MULTILINE)
    assert heads[0] == "Unreleased" or heads[0] == mmguard.__version__


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_shape(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= 60, f"{node.name} has {size} lines"


def test_the_flow_is_short() -> None:
    assert (ROOT / "mmguard/guard.py").read_text(encoding="utf-8").count("\n") < 200
