"""The audit's file: SQLite, appended to in batches, trimmed by age and size, read by anybody.

A commit is whole or not there, whenever the process ends (WAL). What is trimmed is overwritten.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from mmguard.errors import InputError
from mmguard.server.schema import DAY, INSERT, VERSION, Row, create, select, unpack

Connect = Callable[[Path], sqlite3.Connection]


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to write by; only its owner may read a file that this makes."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return sqlite3.connect(path, timeout=5, isolation_level=None)


class File:
    """The rows of one file, in `schema.Store`'s terms. Raises `sqlite3.Error`."""

    def __init__(self, path: Path, connect: Connect = open_file) -> None:
        if not path.parent.is_dir():
            raise InputError(f"audit.path: {path} is in no folder; make it first")
        self.path, self.connect = path, connect
        self.connection: sqlite3.Connection | None = None

    def opened(self) -> sqlite3.Connection:
        if self.connection is None:
            self.connection = self.connect(self.path)
            prepare(self.connection)
        return self.connection

    def append(self, rows: Sequence[Row]) -> None:
        append(self.opened(), rows)

    def trim(self, days: float | None, mib: float | None, due: bool) -> None:
        """Size is looked at each time."""
        connection = self.opened()
        if due:
            expire(connection, days)
        shrink(connection, mib)

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            with suppress(sqlite3.Error):
                connection.close()


def prepare(connection: sqlite3.Connection) -> None:
    """The table, and how the file is kept. Raises `sqlite3.Error`."""
    for pragma in ("auto_vacuum=incremental", "journal_mode=wal", "synchronous=normal"):
        connection.execute(f"pragma {pragma}")
    connection.execute("pragma secure_delete=on")
    connection.execute("pragma journal_size_limit=4194304")
    if connection.execute("pragma user_version").fetchone()[0] not in (0, VERSION):
        raise sqlite3.DatabaseError("the file belongs to another version of mmguard")
    connection.execute(create("integer"))
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


def read(
    path: Path, since: float = 0.0, action: str | None = None, last: int | None = None
) -> Iterator[dict[str, Any]]:
    """Decisions, the oldest first. Raises `InputError` for what is no audit."""
    if not path.is_file():
        raise InputError(f"{path} is no file")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            yield from map(unpack, connection.execute(*select(since, action, last)))
    except sqlite3.Error as exc:
        raise InputError(f"{path} cannot be read as an audit: {exc}") from exc
