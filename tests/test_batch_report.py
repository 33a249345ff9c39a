"""The page of a job, the example that tunes on its exports, and the bench of jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmguard.batch.curate import whole
from mmguard.batch.export import export
from mmguard.batch.job import Job, Plan
from mmguard.bench.generate import Plans, bench_generate
from mmguard.cli import app
from mmguard.models.scripted import ScriptedModel
from mmguard.wrap import Wrapped
from tests.world import BAD, harm_detector, make_policy, png, tempted

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "a.png").write_bytes(png(60, 60))
    rows = [{"prompt": "tea? <b>"}, {"prompt": "harm?", "image": "a.png"}, {"prompt": "tea? <B>"}]
    rows.append({"prompt": "gone?", "image": "gone.png"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wrapped = Wrapped(ScriptedModel(tempted), make_policy(), detectors={"harm": harm_detector()})
    for _ in Job(wrapped, Plan(folder / "rows.jsonl"), folder / "out").run():
        pass
    return folder / "out"


def test_the_page_tells_what_was_made(made: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "report", str(made), "--json"])
    found = json.loads(result.stdout)
    assert (found["rows"], found["repeated"]) == (3, 1)
    assert found["decision"] == {"pass": 2, "repair": 1}
    assert found["step"] == {"answer": 2, "caption": 1}
    assert found["cost"]["draft"] == {
        "calls": 3,
        "tokens_read": 6,
        "tokens_generated": 12,
        "ms": found["cost"]["draft"]["ms"],
    }
    assert found["scores"]["draft"] > found["scores"]["answer"]
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "<b>tea" not in page
    assert "tea? &lt;b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == page.count("class=veiled") == 1
    assert 'src="http' not in page
    assert f"{BAD} advice" in page


def test_a_folder_without_a_job_has_no_page(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "report", str(tmp_path)])
    assert "holds no job" in str(result.exception)


def test_a_tiny_model_is_tuned_on_the_exports(made: Path, tmp_path: Path) -> None:
    export(made, tmp_path, ["trl-sft", "trl-dpo"], [whole], parquet=True)
    told = subprocess.run(
        [sys.executable, "examples/tune_tiny.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    ).stdout
    losses = dict(line.split(": loss ") for line in told.splitlines() if ": loss " in line)
    assert set(losses) == {"trl-sft", "trl-dpo"}
    assert all(float(loss) > 0 for loss in losses.values())


def test_the_examples_prompts_are_rows() -> None:
    from mmguard.batch.inputs import read_input
    from mmguard.batch.items import make_item
    from mmguard.rows import open_images

    path = ROOT / "examples" / "prompts.jsonl"
    with open_images(path.parent) as images:
        for row in read_input(path):
            assert isinstance(row, dict)
            assert make_item(1, row, images, {}).facts["license"] == "Apache-2.0"


def test_jobs_are_measured_beside_plain_loops() -> None:
    made = bench_generate(Plans(rows=4, tokens=2, sizes=(2,), rounds=1))
    for kind in ("harmless", "mixed"):
        assert set(made["speeds"][kind]) == {"unguarded, 2", "guarded, row by row", "job, 2"}
        assert set(made["ratios"][kind]["job, 2"]) == {"to_unguarded", "to_loop"}
        assert all(speed["per_s"] > 0 for speed in made["speeds"][kind].values())
