"""Exports: what each trainer's reader finds in them, and what is left out, with its reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from mmguard.batch import curate
from mmguard.batch.export import export
from mmguard.batch.folder import read_made
from mmguard.batch.formats import FORMATS
from mmguard.batch.job import Job, Plan
from mmguard.cli import app
from mmguard.errors import InputError, UnknownName
from mmguard.models.scripted import ScriptedModel
from mmguard.types import AnyRequest, Reply
from mmguard.wrap import Wrapped
from tests.world import BAD, harm_detector, make_policy, png, tempted, words

ROWS: list[dict[str, Any]] = [
    {"prompt": "harmless?", "license": "CC0-1.0", "category": "tea"},
    {"prompt": "what is <image>?", "license": "MIT"},
    {"prompt": "harmful?", "image": "a.png"},
    {"prompt": "both? <image> <image>", "images": ["a.png", "b.png"]},
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "stay bad"},
        ]
    },
    {"prompt": "be long"},
]


def script(request: AnyRequest) -> str | Reply:
    if "be long" in words(request):
        return Reply("and so on", "length")
    return f"{BAD} still" if "stay bad" in words(request) else tempted(request)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    for name, width in (("a.png", 6), ("b.png", 9)):
        (folder / name).write_bytes(png(width))
    source = folder / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    wrapped = Wrapped(ScriptedModel(script), make_policy(), detectors={"harm": harm_detector()})
    for _ in Job(wrapped, Plan(source), folder / "out").run():
        pass
    return folder / "out"


def write(made: Path, out: Path, name: str, parquet: bool = False) -> Any:
    [found] = export(made, out, [name], [curate.whole], parquet)
    file = out / name / "train.jsonl"
    rows: Any
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    else:
        rows = json.loads((out / name / "train.json").read_text(encoding="utf-8"))
    assert len(rows.get("instances", rows) if isinstance(rows, dict) else rows) == found.records
    return rows


def test_one_row_of_each_kind_was_made(made: Path) -> None:
    found = [(row["action"], row["step"], row["finish"]) for row in read_made(made)]
    assert found == [
        ("pass", "answer", "stop"),
        ("pass", "answer", "stop"),
        ("repair", "caption", "stop"),
        ("repair", "caption", "stop"),
        ("block", "output", "content_filter"),
        ("pass", "answer", "length"),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_json_that_carries_no_harm_as_its_answer(
    made: Path, tmp_path: Path, name: str
) -> None:
    rows: Any = write(made, tmp_path, name)
    told = json.dumps(rows)
    worse = {"trl-dpo", "trl-kto", "llamafactory-dpo", "axolotl-dpo", "swift", "classifier"}
    assert (BAD in told) == (name in worse)


def marks(value: Any) -> int:
    """Places of pictures in a record's texts and parts."""
    if isinstance(value, str):
        return value.count("<image>")
    if isinstance(value, dict):
        return (value.get("type") == "image") + sum(marks(v) for v in value.values())
    return sum(map(marks, value)) if isinstance(value, list) else 0


@pytest.mark.parametrize(
    "name",
    [
        "trl-sft",
        "trl-prompt",
        "trl-dpo",
        "trl-kto",
        "llamafactory",
        "llamafactory-dpo",
        "swift",
        "llava",
    ],
)
def test_there_is_a_place_for_every_picture(made: Path, tmp_path: Path, name: str) -> None:
    rows = write(made, tmp_path, name)
    for row in rows:
        listed = row.get("images", row.get("image", []))
        listed = [listed] if isinstance(listed, str) else listed
        assert marks({k: v for k, v in row.items() if k != "images"}) == len(listed)
        assert all((tmp_path / name / path).read_bytes() for path in listed)
    assert any(marks(row) for row in rows)


def test_preferences_choose_the_safe_answer(made: Path, tmp_path: Path) -> None:
    rows = write(made, tmp_path, "trl-dpo")
    assert len(rows) == 3
    for row in rows:
        chosen, rejected = (row[name][0]["content"][0]["text"] for name in ("chosen", "rejected"))
        assert BAD in rejected
        assert BAD not in chosen


def test_labels_of_kto_and_of_detectors(made: Path, tmp_path: Path) -> None:
    kto = Counter(row["label"] for row in write(made, tmp_path, "trl-kto"))
    assert kto == {True: 5, False: 3}
    rows = write(made, tmp_path, "classifier")
    assert all(row["response_harm"] == int(BAD in row["response"]) for row in rows)
    assert {row["score"] for row in rows if row["response_harm"]} == {0.9}


def test_staged_records_tell_how_the_answer_came_about(made: Path, tmp_path: Path) -> None:
    [first, _] = write(made, tmp_path, "aligncot")
    assert first["question"] == "harmful?"
    assert "0.90 for harm (hate)" in first["question_analysis"]
    assert "a red square" in first["question_analysis"]
    assert first["safe_answer"] == "a harmless answer"
    [first, _] = write(made, tmp_path, "prism")
    told = first["messages"][-1]["content"]
    assert told.startswith(
        "<|PROBLEM|>I am asked: harmful?<|/PROBLEM|>\n<|CAPTION|>a red square<|/"
    )
    assert told.endswith("<|OUTPUT|>a harmless answer<|/OUTPUT|>")


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize(
    "name", ["trl-sft", "trl-dpo", "trl-kto", "llava", "classifier", "axolotl"]
)
def test_the_library_loads_the_folder(
    made: Path, tmp_path: Path, name: str, parquet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = write(made, tmp_path / "out", name, parquet)
    loaded: Any = datasets.load_dataset(str(tmp_path / "out" / name), cache_dir=str(tmp_path / "c"))
    assert loaded["train"].num_rows == len(rows)
    if parquet and name.startswith("trl"):
        sizes = {image.size for row in loaded["train"] for image in row["images"]}
        assert sizes == {(6, 4), (9, 4)}


def test_the_card_is_what_the_hub_reads(made: Path, tmp_path: Path) -> None:
    write(made, tmp_path, "trl-sft")
    text = (tmp_path / "trl-sft" / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license_name"] == "CC0-1.0 and MIT and unknown"
    assert head["configs"] == [{"config_name": "default", "data_files": "train.jsonl"}]
    for told in (
        "5 records of 5 rows",
        "| repair | 2 |",
        "| cut short | 1 |",
        "| hate | 3 |",
        "harm",
    ):
        assert told in body


def test_llamafactory_finds_its_columns(made: Path, tmp_path: Path) -> None:
    for name, ranked in (("llamafactory", False), ("llamafactory-dpo", True)):
        rows = write(made, tmp_path, name)
        [info] = json.loads((tmp_path / name / "dataset_info.json").read_text()).values()
        assert info.get("ranking", False) == ranked
        assert all(set(info["columns"]) <= set(row) for row in rows)


def test_an_export_replaces_itself_and_nothing_else(made: Path, tmp_path: Path) -> None:
    write(made, tmp_path, "llava")
    (tmp_path / "llava" / "old").touch()
    write(made, tmp_path, "llava")
    assert not (tmp_path / "llava" / "old").exists()
    (tmp_path / "swift").mkdir()
    (tmp_path / "swift" / "mine.txt").touch()
    with pytest.raises(InputError, match="files that no export wrote"):
        write(made, tmp_path, "swift")
    with pytest.raises(UnknownName, match="did you mean 'llava'"):
        write(made, tmp_path, "lava")


def test_the_command_writes_every_format(made: Path, tmp_path: Path) -> None:
    arguments = [
        "generate",
        "export",
        str(made),
        "--out",
        str(tmp_path),
        "--json",
        "--refusals",
        "0.5",
    ]
    result = CliRunner().invoke(app, arguments)
    found = json.loads(result.stdout)
    assert set(found) == set(FORMATS)
    assert found["llava"] == {"records": 5, "left_out": {"cut short": 1}}


# -- curation -------------------------------------------------------------------


def row(**fields: Any) -> dict[str, Any]:
    usual = {
        "action": "pass",
        "answer": "a",
        "answer_score": 0.1,
        "categories": {},
        "finish": "stop",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
        "pictures": [],
    }
    return {**usual, **fields}


def test_blocks_say_why() -> None:
    assert curate.whole(row(finish="length")) == "cut short"
    assert curate.spoken(row(messages=[{"role": "tool", "content": []}])) == "a turn of a tool"
    below = curate.Below(0.1)
    assert (below(row()), below(row(answer_score=0.09)), below(row(answer_score=None))) == (
        "scores too high",
        "",
        "",
    )
    once = curate.Once()
    assert [once(row()), once(row(answer=" A ")), once(row(answer="b"))] == ["", "said before", ""]
    assert once(row(pictures=[{"sha256": "1"}])) == ""


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1))
def test_refusals_never_pass_their_share(kinds: list[bool], most: float) -> None:
    block = curate.Refusals(most, few=3)
    kept = [
        refused
        for refused in kinds
        if not block(row(action="block" if refused else "pass", categories={"hate": 1.0}))
    ]
    assert kept.count(False) == kinds.count(False)
    assert kept.count(True) <= max(3, most * len(kinds) + 1)
    assert kept.count(True) >= min(3, kinds.count(True))
