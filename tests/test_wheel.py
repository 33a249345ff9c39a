"""The wheel: built from the sdist, installed alone, and used without the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = """
import json, mmguard, pathlib
from mmguard.bundles import load_detector, shipped
from mmguard.policy import load_policy, presets
print(json.dumps({
    "home": str(pathlib.Path(mmguard.__file__).parent),
    "policies": [load_policy(name).name for name in presets()],
    "detectors": [load_detector(name).name for name in shipped()],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmguard"}
    for name in ("balanced.yaml", "schema.json"):
        assert f"mmguard/_data/policies/{name}" in names
    shipped = {p.relative_to(ROOT) for p in (ROOT / "detectors").rglob("*") if p.is_file()}
    packed = {Path(name).relative_to("mmguard/_data") for name in names if "/detectors/" in name}
    assert packed == shipped
    assert "mmguard/py.typed" in names
    assert {f"mmguard/server/ui/page.{kind}" for kind in ("html", "css", "js")} <= set(names)


@pytest.mark.slow
def test_installed_alone(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment that borrows our dependencies but not our checkout."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
    # Isolated: no PYTHONPATH may stand in for what the wheel lacks.
    command = [str(home / "bin/python"), "-I", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["home"].startswith(str(site))
    assert found["policies"] == ["audit", "balanced", "ecso", "off", "protector", "strict"]
    assert {"phrases", "response-harm-linear"} <= set(found["detectors"])
