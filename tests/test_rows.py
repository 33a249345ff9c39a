"""Rows of a file: order, errors in their place, compression, pictures beside the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from hypothesis import given, strategies as st

from mmguard.bundles import load_detector
from mmguard.models.scripted import ScriptedDetector
from mmguard.rows import Row, count_rows, read_rows, score_rows, sees
from mmguard.types import Finding, Sample
from tests.world import BAD, harm_detector, png


def score(folder: Path, text: str, detector: ScriptedDetector | None = None) -> list[Row]:
    path = folder / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    return list(score_rows(detector or harm_detector(), read_rows(path), folder))


def test_scores_in_order(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "prompt": "q", "response": BAD * (i % 2)}) for i in range(150)]
    found = score(tmp_path, "\n".join(lines))
    assert [row["id"] for row in found] == list(range(150))
    assert [row["score"] for row in found] == [0.1, 0.9] * 75
    assert set(found[0]) == {"id", "score", "label", "categories", "error"}


def test_bad_rows_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    text = """{"id": 1, "prompt": "fine"}
not json
[1]
{"id": 4}

{"id": 5, "prompt": 7}
{"id": 6, "response": "alone", "image": "red.png"}
{"id": 7, "prompt": "x", "image": "gone.png"}"""
    found = score(tmp_path, text)
    assert [row["id"] for row in found] == [1, None, None, 4, 5, 6, 7]
    assert [row["error"] is None for row in found] == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert "rows.jsonl:2: not JSON" in found[1]["error"]
    assert "gone.png" in found[6]["error"]


def test_broken_scores_are_errors(tmp_path: Path) -> None:
    def script(sample: Sample) -> Any:
        return {"nan": float("nan"), "raise": None}.get(sample.reply or "", 0.3)

    detector = ScriptedDetector(script, name="harm")
    text = "\n".join(json.dumps({"response": word}) for word in ("nan", "fine"))
    first, second = score(tmp_path, text, detector)
    assert (first["score"], second["score"]) == (None, 0.3)
    assert "nan" in first["error"]
    named = ScriptedDetector(lambda s: Finding("harm", 0.0, error="no weights"), name="harm")
    assert score(tmp_path, '{"prompt": "x"}', named)[0]["error"] == "no weights"


def test_one_row_that_breaks_the_detector(tmp_path: Path) -> None:
    def script(sample: Sample) -> float:
        if sample.reply == "poison":
            raise RuntimeError("cannot read this")
        return 0.2

    detector = ScriptedDetector(script, name="harm")
    text = "\n".join(json.dumps({"response": word}) for word in ("a", "poison", "b"))
    assert [row["score"] for row in score(tmp_path, text, detector)] == [0.2, None, 0.2]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert count_rows(path) == 2
    assert len(list(read_rows(path))) == 2


@given(st.lists(st.text(max_size=20), max_size=8))
def test_as_many_out_as_in(lines: list[str]) -> None:
    rows = [{"id": i, "prompt": line} for i, line in enumerate(lines)]
    found = list(score_rows(harm_detector(), rows, Path()))
    assert [row["id"] for row in found] == list(range(len(lines)))


def test_what_sees_no_picture_needs_none(tmp_path: Path) -> None:
    detector = harm_detector()
    text = json.dumps({"prompt": "q", "response": BAD, "image": "gone.png"})
    assert "gone.png" in score(tmp_path, text, detector)[0]["error"]
    vars(detector)["sees"] = False
    assert score(tmp_path, text, detector)[0]["score"] == 0.9
    assert not detector.seen[-1].request.images


def test_which_detectors_see() -> None:
    names = ("phrases", "response-harm-linear", "response-harm")
    assert [sees(load_detector(name)) for name in names] == [False] * 3
    assert sees(harm_detector())
