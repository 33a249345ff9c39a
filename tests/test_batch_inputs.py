"""Rows of prompts and pictures from every kind of file, and what each of them asks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmguard.batch.inputs import read_input
from mmguard.batch.items import Item, make_item
from mmguard.errors import ImageError, InputError
from mmguard.types import Image, Text
from tests.world import png

ROWS = [{"prompt": "one?", "license": "CC0-1.0"}, {"prompt": "two?"}]


def write_jsonl(path: Path) -> Path:
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def write_json(path: Path) -> Path:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def write_gzip(path: Path) -> Path:
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, ROWS)))
    return path


def write_csv(path: Path) -> Path:
    path.write_text("prompt,license\none?,CC0-1.0\ntwo?,\n", encoding="utf-8")
    return path


def write_parquet(path: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def write_saved(path: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_gzip,
    "a.json": write_json,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "saved": write_saved,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_its_rows(tmp_path: Path, name: str) -> None:
    found = list(read_input(WRITERS[name](tmp_path / name)))
    told = [
        {k: v for k, v in row.items() if v is not None} for row in found if isinstance(row, dict)
    ]
    assert told == ROWS


def test_a_saved_picture_comes_as_it_was(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = {"prompt": ["what?"], "images": [[{"bytes": png(), "path": None}]]}
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "images": datasets.List(datasets.Image())}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    [row] = read_input(tmp_path / "saved")
    assert not isinstance(row, InputError)
    assert item(row).request.images == (Image(png()),)


def test_a_folder_of_pictures_is_asked_every_prompt(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(png())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("what?\n\nwhere?\n", encoding="utf-8")
    found = list(read_input(tmp_path, prompts))
    assert found == [
        {"prompt": asked, "image": name}
        for name in ("a.JPG", "b.png")
        for asked in ("what?", "where?")
    ]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "{}", "give a list of rows, not dict"),
        ("a.xml", "", r"nobody here reads .xml: .csv, .json, .jsonl, .parquet"),
        ("a", "", "a file without ending"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        list(read_input(tmp_path / name))


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        list(read_input(tmp_path / "gone.jsonl"))
    with pytest.raises(InputError, match="give --prompts"):
        list(read_input(tmp_path))
    (tmp_path / "p.txt").write_text("what?", encoding="utf-8")
    with pytest.raises(InputError, match="holds no pictures"):
        list(read_input(tmp_path, tmp_path / "p.txt"))
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="is a file"):
        list(read_input(tmp_path / "a.jsonl", tmp_path / "p.txt"))


@pytest.mark.parametrize("text", ["prompt,image\na\n", "prompt\na,b\n"])
def test_a_bad_line_of_a_table_is_an_error_in_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text + "fine,\n" * text.startswith("prompt,"), encoding="utf-8")
    first = next(iter(read_input(tmp_path / "a.csv")))
    assert isinstance(first, InputError)
    assert ":2: not as many fields" in str(first)


# -- what a row asks ------------------------------------------------------------

FILES = {"a.png": png(color="red"), "b.png": png(color="blue")}
RED, BLUE = Image(FILES["a.png"]), Image(FILES["b.png"])


def item(row: Any) -> Item:
    return make_item(1, row, lambda name: FILES[name], {"source": "here"})


LLAVA = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "an answer"}]
TRL = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
OPENAI = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "what?"}]
ANSWERED = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "old"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "what?", "image": "a.png"},
        {"question": "what?", "images": ["a.png"]},
        {"query": "what?", "image": {"bytes": FILES["a.png"], "path": None}},
        {"prompt": "what?", "image": FILES["a.png"]},
        {"conversations": LLAVA, "image": "a.png"},
        {"messages": TRL, "images": ["a.png"]},
        {"prompt": TRL, "images": [{"path": "a.png"}]},
        {"messages": [{"role": "user", "content": OPENAI}]},
        {"messages": ANSWERED, "image": "a.png"},
    ],
)
def test_every_shape_asks_the_same(row: dict[str, Any]) -> None:
    [turn] = item(row).request.messages
    assert (turn.role, turn.parts) == ("user", (RED, Text("what?")))


def test_pictures_stand_where_their_marks_are() -> None:
    row = {"prompt": "first <image> then <image>\nend", "images": ["a.png", "b.png"]}
    [turn] = item(row).request.messages
    assert turn.parts == (Text("first "), RED, Text(" then "), BLUE, Text("end"))
    earlier = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "red"}]
    asked = [*earlier, {"role": "user", "content": "<image> and this?"}]
    first, _, last = item({"messages": asked, "images": ["a.png", "b.png"]}).request.messages
    assert (first.parts, last.parts) == ((RED,), (BLUE, Text(" and this?")))


def test_a_mark_without_pictures_is_text() -> None:
    [turn] = item({"prompt": "what does <image> mean?"}).request.messages
    assert turn.parts == (Text("what does <image> mean?"),)


def test_facts_are_the_rows_own_or_the_jobs() -> None:
    found = item({"prompt": "a", "license": "MIT", "source": "", "prompt_harm": 0, "other": 1})
    assert found.facts == {"source": "here", "license": "MIT", "prompt_harm": 0}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "asks nothing"),
        ({"messages": []}, "asks nothing"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "asks nothing"),
        ({"prompt": 7}, "prompt must be text or turns, not int"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "not as 'bot'"),
        ({"prompt": "<image>", "images": ["a.png", "b.png"]}, "2 pictures, and places for 1"),
        ({"prompt": "<image> <image>", "image": "a.png"}, "more places for pictures"),
        (
            {"messages": [{"role": "system", "content": "s"}], "image": "a.png"},
            "no turn of the user",
        ),
        ({"messages": TRL}, "names no picture"),
        ({"messages": ["a"]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "audio"),
    ],
)
def test_a_row_that_cannot_be_asked_says_why(row: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        item(row)


def test_a_broken_picture_says_so() -> None:
    with pytest.raises(ImageError):
        item({"prompt": "a", "image": b"no picture"})
