"""A job's folder: whole lines only, each row once, whatever happens while it is written."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mmguard.batch.folder import Folder, read_made, shards
from mmguard.batch.seen import Seen
from mmguard.errors import InputError
from mmguard.types import Image
from tests.world import png

FACTS = {"policy": "p@1", "model": "m"}


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"{number * 7919:032x}"[::-1], "number": number, **more}


def fill(path: Path, count: int, **how: Any) -> None:
    folder = Folder(path, FACTS, **how)
    folder.add(row(i) for i in range(count))
    folder.close()


def numbers(path: Path) -> list[int]:
    return [made["number"] for made in read_made(path)]


@given(st.lists(st.integers(0, 300), max_size=200), st.integers(1, 50))
def test_what_was_added_is_seen_and_nothing_else(added: list[int], fresh: int) -> None:
    seen = Seen(fresh)
    for number in added:
        seen.add(f"{number << 64:032x}")
    assert {n for n in range(301) if f"{n << 64:032x}" in seen} == set(added)
    assert len(seen) == len(set(added))


def test_rows_are_kept_once_in_shards(tmp_path: Path) -> None:
    fill(tmp_path, 7, shard=3)
    fill(tmp_path, 9, shard=3)
    assert [len(p.read_text().splitlines()) for p in shards(tmp_path)] == [3, 3, 3]
    assert numbers(tmp_path) == list(range(9))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_half_a_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, 3)
    [shard] = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-cut])
    whole = shard.read_bytes().count(b"\n")
    assert numbers(tmp_path) == list(range(whole))
    fill(tmp_path, 5)
    assert sorted(numbers(tmp_path)) == list(range(5))
    assert all(json.loads(line) for line in shard.read_text().splitlines())


def test_a_first_line_that_is_no_line_is_cut_off(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    [shard] = shards(tmp_path)
    shard.write_bytes(b'{"id": "' + b"0" * 200_000)
    fill(tmp_path, 1)
    assert numbers(tmp_path) == [0]


def test_a_line_of_another_is_told(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    shards(tmp_path)[0].write_text('{"prompt": "mine"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="a line that no job wrote"):
        Folder(tmp_path, FACTS)


def test_the_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(InputError, match="another job, with policy 'p@1', not 'q@2': use another"):
        Folder(tmp_path, {**FACTS, "policy": "q@2"})
    with pytest.raises(InputError, match="holds no job"):
        list(read_made(tmp_path / "rows"))


def test_two_jobs_do_not_write_at_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path, FACTS)
    with pytest.raises(InputError, match="another job is writing here"):
        Folder(tmp_path, FACTS)
    folder.close()
    Folder(tmp_path, FACTS).close()


class Full(FileIO):
    """A disk with room for so many more bytes."""

    room = 0

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = super().write(bytes(data)[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 30, 47, 70])
def test_a_full_disk_tears_no_line(tmp_path: Path, room: int) -> None:
    fill(tmp_path, 2)
    folder = Folder(tmp_path, FACTS)
    folder.open.close()
    full = Full(shards(tmp_path)[-1], "a")
    full.room, folder.open = room, full
    with pytest.raises(OSError, match="No space"):
        folder.add(row(i) for i in range(2, 9))
    folder.close()
    lines = shards(tmp_path)[-1].read_bytes()
    assert lines.endswith(b"\n")
    assert numbers(tmp_path) == list(range(lines.count(b"\n")))


def test_a_lone_surrogate_is_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path, FACTS)
    folder.add([row(1, answer="a\ud800b")])
    folder.close()
    assert next(read_made(tmp_path))["answer"] == "a\ud800b"


def test_pictures_are_kept_once_by_content(tmp_path: Path) -> None:
    folder = Folder(tmp_path, FACTS)
    places = {folder.keep(Image(png())), folder.keep(Image(png())), folder.keep(Image(png(9)))}
    folder.close()
    assert len(places) == 2
    assert {(tmp_path / place).read_bytes() for place in places} == {png(), png(9)}


def test_rejects_start_anew(tmp_path: Path) -> None:
    for _ in range(2):
        folder = Folder(tmp_path, FACTS)
        folder.reject(3, "because", {"bytes": b"x"})
        folder.close()
    [line] = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"number": 3, "reason": "because", "row": {"bytes": "b'x'"}}
