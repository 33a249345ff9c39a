"""A job's folder: rows in shards, pictures by content, and what cannot be answered.

A row is one line of `rows/`, written whole or not at all: what a kill leaves of a line is cut off
when the folder is opened again. Only one process writes at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from mmguard.batch.seen import Seen
from mmguard.errors import InputError
from mmguard.types import Image

SHARD = 10_000
Facts = Mapping[str, Any]


class Folder:
    """Opened for one job, known by its `facts`. Raises `InputError` if it is another's, or busy.

    `seen` holds the ids of all rows that it has. A shard is closed at `shard` rows.
    """

    def __init__(self, path: Path, facts: Facts, shard: int = SHARD) -> None:
        self.path, self.shard, self.seen, self.synced = path, shard, Seen(), 0.0
        (path / "rows").mkdir(parents=True, exist_ok=True)
        (path / "pictures").mkdir(exist_ok=True)
        self.lock = (path / "lock").open("w")
        try:
            hold(self.lock.fileno())
            agree(path / "job.json", facts)
            self.open, self.count = self.resume()
            self.rejects = (path / "rejected.jsonl").open("w", encoding="utf-8")
        except BlockingIOError:
            self.lock.close()
            raise InputError(f"{path}: another job is writing here; wait for its end") from None
        except BaseException:
            self.lock.close()
            raise

    def resume(self) -> tuple[FileIO, int]:
        """The shard that has room, and how many rows it has."""
        found, count = shards(self.path), 0
        if found:
            mend(found[-1])
        for path in found:
            count = 0
            with path.open("rb") as lines:
                for line in lines:
                    self.seen.add(read_id(path, line))
                    count += 1
        if found and count < self.shard:
            return FileIO(found[-1], "a"), count
        return self.start(len(found)), 0

    def start(self, number: int) -> FileIO:
        return FileIO(self.path / "rows" / f"{number:05}.jsonl", "a")

    def add(self, rows: Iterable[Facts]) -> None:
        """Rows that are new, each once. A kill cannot undo them; a power cut the last second's."""
        for row in rows:
            if row["id"] in self.seen:
                continue
            if self.count >= self.shard:
                self.turn()
            # The id leads the line, so that it is found without reading the rest.
            self.write(dump({"id": row["id"], **row}))
            self.seen.add(row["id"])
            self.count += 1
        if (now := time.monotonic()) > self.synced + 1:
            os.fsync(self.open.fileno())
            self.synced = now

    def turn(self) -> None:
        """The next shard."""
        os.fsync(self.open.fileno())
        self.open.close()
        self.open, self.count = self.start(len(shards(self.path))), 0

    def write(self, line: bytes) -> None:
        """A whole line, or, if the disk is full, nothing of it."""
        start, left = self.open.seek(0, os.SEEK_END), memoryview(line)
        try:
            while left:
                left = left[self.open.write(left) :]
        except OSError:
            self.open.truncate(start)
            raise

    def reject(self, number: int, reason: str, row: Any) -> None:
        """A row that was not answered, kept with the reason."""
        line = {"number": number, "reason": reason, "row": row}
        self.rejects.write(json.dumps(line, default=repr) + "\n")
        self.rejects.flush()

    def keep(self, image: Image) -> str:
        """The picture's place in the folder, named by its content."""
        ending = image.mime.removeprefix("image/").split("+")[0]
        place = f"pictures/{digest(image)[:32]}.{ending}"
        path = self.path / place
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_bytes(image.data)
            fresh.replace(path)
        return place

    def close(self) -> None:
        os.fsync(self.open.fileno())
        for file in (self.open, self.rejects, self.lock):
            file.close()


def digest(image: Image) -> str:
    return hashlib.sha256(image.data).hexdigest()


def dump(row: Facts) -> bytes:
    """A line of JSON; half of a surrogate pair, which UTF-8 has no bytes for, is escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def hold(lock: int) -> None:
    """Locks a file until it is closed, or the process ends; Windows has no such lock."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def shards(path: Path) -> list[Path]:
    return sorted((path / "rows").glob("*.jsonl"))


def read_made(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a job's folder. Raises `InputError` if it is none."""
    if not (path / "job.json").is_file():
        raise InputError(f"{path} holds no job: give the --out of mmguard generate")
    for shard in shards(path):
        with shard.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)


def mend(shard: Path) -> None:
    """Cuts off what a kill left of a last line."""
    with shard.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65_536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            end = start + found + 1
            if found >= 0:
                break
            end = start
        if end < size:
            file.truncate(end)


def read_id(path: Path, line: bytes) -> str:
    """The id of a row, which leads its line."""
    found = line[8:40].decode("ascii", "replace")
    if not line.startswith(b'{"id": "') or len(found) < 32:
        raise InputError(f"{path} holds a line that no job wrote: {line[:60]!r}")
    return found


def agree(path: Path, facts: Facts) -> None:
    """Writes the job's facts, or compares them with those that are there."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name in {*known, *facts} if known.get(name) != facts.get(name)]
    if other:
        told = ", ".join(f"{n} {known.get(n)!r}, not {facts.get(n)!r}" for n in sorted(other))
        raise InputError(f"{path.parent} is of another job, with {told}: use another --out")
