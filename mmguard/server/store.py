"""The audit's file: SQLite, appended to in batches, trimmed by age and size, read by anybody.

A commit is whole or not there, whenever the process ends (WAL). What is trimmed is overwritten.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mmguard.errors import InputError

Row = tuple[Any, ...]
Connect = Callable[[Path], sqlite3.Connection]
VERSION = 1
DAY = 86400.0
LISTS = ("categories", "trail", "detail", "pictures")
TABLE = """
create table if not exists decisions (
  id integer primary key, time real not null, request text not null, choice integer not null,
  route text not null, key text not null, policy text not null, action text not null,
  decision text not null, step text not null, categories text not null, trail text not null,
  detail text not null, asked text not null, pictures text not null, prompt integer not null,
  completion integer not null, ms real not null, guard_ms real not null)
"""
COLUMNS = 18
INSERT = f"insert into decisions values (null{', ?' * COLUMNS})"


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to write by; only its owner may read a file that this makes."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return sqlite3.connect(path, timeout=5, isolation_level=None)


def prepare(connection: sqlite3.Connection) -> None:
    """The table, and how the file is kept. Raises `sqlite3.Error`."""
    for pragma in ("auto_vacuum=incremental", "journal_mode=wal", "synchronous=normal"):
        connection.execute(f"pragma {pragma}")
    connection.execute("pragma secure_delete=on")
    connection.execute("pragma journal_size_limit=4194304")
    if connection.execute("pragma user_version").fetchone()[0] not in (0, VERSION):
        raise sqlite3.DatabaseError("the file belongs to another version of mmguard")
    connection.execute(TABLE)
    connection.execute("create index if not exists by_time on decisions (time)")
    connection.execute(f"pragma user_version={VERSION}")


def append(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """All rows, or by an error none of them."""
    connection.execute("begin immediate")
    try:
        connection.executemany(INSERT, rows)
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def expire(connection: sqlite3.Connection, days: float | None) -> None:
    """Forget what is older than this."""
    if days is not None:
        oldest = time.time() - days * DAY
        connection.execute("delete from decisions where time < ?", (oldest,))


def shrink(connection: sqlite3.Connection, mib: float | None) -> None:
    """Forget the oldest until the rest fits; give back the room of what was forgotten."""
    while mib is not None and used(connection) > mib * 2**20:
        first, last = connection.execute("select min(id), max(id) from decisions").fetchone()
        if first is None or first == last:
            break
        until = first + max(1, (last - first) // 10)
        connection.execute("delete from decisions where id < ?", (until,))
    if connection.execute("pragma freelist_count").fetchone()[0]:
        # A page a step: `execute` would take the first step only.
        connection.executescript("pragma incremental_vacuum")


def used(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold anything."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (connection.execute(f"pragma {n}").fetchone()[0] for n in names)
    return int((pages - free) * size)


# -- reading --------------------------------------------------------------------


def read(path: Path, since: float = 0.0, action: str | None = None) -> Iterator[dict[str, Any]]:
    """Decisions, the oldest first. Raises `InputError` for what is no audit."""
    if not path.is_file():
        raise InputError(f"{path} is no file")
    wanted = "select * from decisions where time >= ? and action = coalesce(?, action) order by id"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            for row in connection.execute(wanted, (since, action)):
                yield unpack(row)
    except sqlite3.Error as exc:
        raise InputError(f"{path} cannot be read as an audit: {exc}") from exc


def unpack(row: sqlite3.Row) -> dict[str, Any]:
    return {name: json.loads(row[name]) if name in LISTS else row[name] for name in row.keys()}  # noqa: SIM118  # a Row is no mapping
