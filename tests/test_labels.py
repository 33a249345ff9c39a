"""Labelled rows of many shapes: which fields are read, what their values mean, what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from mmguard.errors import InputError
from mmguard.evals.rows import Fields, Labelled, load_examples, score_examples
from mmguard.models.scripted import ScriptedDetector
from tests.test_detect import write_rows
from tests.world import png


def load(folder: Path, *rows: dict[str, Any], side: Any = "answer", **wanted: str) -> Labelled:
    return load_examples([write_rows(folder / "rows.jsonl", list(rows))], side, Fields(**wanted))


LABELS = [
    ({"response_harm": 1}, True),
    ({"response_harm": 0.0}, False),
    ({"label": True}, True),
    ({"label": "0"}, False),
    ({"label": " Unsafe "}, True),
    ({"response_harm_label": "unharmful"}, False),
    ({"is_safe": True}, False),
    ({"is_safe": "false"}, True),
    ({"response_label": "safe"}, False),
]


@pytest.mark.parametrize(("row", "harmful"), LABELS)
def test_labels(tmp_path: Path, row: dict[str, Any], harmful: bool) -> None:
    found = load(tmp_path, {"prompt": "q", "response": "a", **row})
    assert [example.harmful for example in found.examples] == [harmful]


def test_fields_are_found_or_named(tmp_path: Path) -> None:
    row = {"user_input": "q", "model_output": "a", "toxicity": 1, "mine": "no"}
    with pytest.raises(InputError, match="name one with --label"):
        load(tmp_path, row)
    found = load(tmp_path, row, label="mine")
    assert list(found.fields.values()) == [Fields("mine", "user_input", "model_output")]
    example = load(tmp_path, row, side="request").examples[0]
    assert (example.prompt, example.response, example.harmful) == ("q", None, True)
    with pytest.raises(InputError, match="no row has a field 'nope'; fields: "):
        load(tmp_path, row, label="nope")
    with pytest.raises(InputError, match="name one with --response"):
        load(tmp_path, {"prompt": "q", "label": 1})


def test_rows_without_label_or_text_are_counted(tmp_path: Path) -> None:
    base: dict[str, Any] = {"prompt": "q", "response": "a", "label": 1}
    rows = [base, {**base, "label": None}, {**base, "response": ""}, {**base, "label": ""}]
    found = load(tmp_path, *rows)
    assert (len(found.examples), found.unlabelled, found.textless) == (1, 2, 1)


def test_sources_categories_and_ids(tmp_path: Path) -> None:
    base = {"response": "a", "label": 1}
    found = load(
        tmp_path,
        {**base, "id": "x", "source": "one", "category": "fraud"},
        {**base, "categories": ["fraud", "hate", "fraud"]},
        {**base, "category": {"fraud": True, "hate": False}},
    )
    assert [e.id for e in found.examples] == ["x", 2, 3]
    assert [e.source for e in found.examples] == ["one", "rows.jsonl", "rows.jsonl"]
    wanted = [("fraud",), ("fraud", "hate"), ("fraud",)]
    assert [e.categories for e in found.examples] == wanted


BAD_FILES = [
    (b'{"response": "a", "label": 1}\n\n{"response": "a", "label": "maybe"}', r":3: label is 'm"),
    (b'{"response": "a", "label": 2}', ":1: label is 2, which is no label: use 0 or 1"),
    (b'{"response": "a", "label": [1]}', r":1: label is \[1\]"),
    (b'{"response": 7, "label": 1}', ":1: response must be a string or null, not int"),
    (b'{"response": "a", "label": 1, "image": 7}', ":1: image must be a path"),
    (b'{"response": "a", "label": 1}\n{', ":2: not JSON"),
    (b'{"response": "a", "label": 1}\n[1]', ":2: a row is an object"),
    (b"\xff\xfe", "not JSONL text in UTF-8"),
    (b"", "no field holds a label"),
    (b'{"response": "a", "prompt_harm": 1, "label": null}', "no field holds a label"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_FILES)
def test_bad_files(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_examples([path])


def test_no_row_is_left(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"response": "a", "label": None},
        {"response": None, "label": 1},
    ]
    with pytest.raises(InputError, match="no row has both a label and a text"):
        load(tmp_path, *rows)


def test_a_broken_archive(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"response": "a", "label": 1}\n' * 99)[:-9])
    with pytest.raises(InputError, match="not JSONL text"):
        load_examples([path])


def test_pictures_beside_their_own_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "red.png").write_bytes(png())
        row = {"prompt": "q", "response": "a", "label": 1, "image": "red.png"}
        write_rows(tmp_path / name / "rows.jsonl", [row])
    found = load_examples([tmp_path / "one/rows.jsonl", tmp_path / "two/rows.jsonl"])
    detector = ScriptedDetector(lambda sample: len(sample.request.images) / 2)
    assert [r["score"] for r in score_examples(detector, found.examples)] == [0.5, 0.5]
    blind = score_examples(detector, found.examples, images=False)
    assert [r["score"] for r in blind] == [0, 0]
