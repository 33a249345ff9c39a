"""What every audit keeps, in SQL that SQLite and PostgreSQL both read: columns and queries.

Parameters are `?` here. Columns with lists hold JSON in ASCII, which any text can be told in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

Row = tuple[Any, ...]
VERSION = 1
DAY = 86400.0
LISTS = ("categories", "trail", "detail", "pictures")
FIELDS = """
  time double precision not null, request text not null, choice bigint not null,
  route text not null, key text not null, policy text not null, action text not null,
  decision text not null, step text not null, categories text not null, trail text not null,
  detail text not null, asked text not null, pictures text not null, prompt bigint not null,
  completion bigint not null, ms double precision not null, guard_ms double precision not null
"""
NAMES = tuple(field.split()[0] for field in FIELDS.split(","))
INSERT = f"insert into decisions ({', '.join(NAMES)}) values ({', '.join('?' * len(NAMES))})"


class Store(Protocol):
    """Where rows go. After any failure it is closed, and opens anew by itself at its next use."""

    def append(self, rows: Sequence[Row]) -> None:
        """All rows, or by an error none of them. What failed is given again, unchanged."""

    def trim(self, days: float | None, mib: float | None, due: bool) -> None:
        """Forget what is older, and the oldest of what is more; `due` once a minute."""

    def close(self) -> None: ...


def create(identity: str) -> str:
    """The table, its key spelled in a dialect."""
    return f"create table if not exists decisions (id {identity} primary key, {FIELDS})"


def select(
    since: float = 0.0, action: str | None = None, last: int | None = None
) -> tuple[str, Row]:
    """A query for decisions, the oldest first, and its parameters; `last`: the newest only."""
    query = f"select id, {', '.join(NAMES)} from decisions where time >= ?"
    given: Row = (since,)
    if action:
        query, given = f"{query} and action = ?", (*given, action)
    if last:
        query, given = f"select * from ({query} order by id desc limit ?) as newest", (*given, last)
    return f"{query} order by id", given


def unpack(row: Sequence[Any]) -> dict[str, Any]:
    """A decision of `select`, by the names of its columns."""
    told = dict(zip(("id", *NAMES), row, strict=True))
    return {name: json.loads(value) if name in LISTS else value for name, value in told.items()}
