"""`mmguard audit`: what a sidecar decided, from where it keeps that."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmguard.cli.console import Json, show, tabulate
from mmguard.errors import InputError
from mmguard.server import store

AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COLUMNS = ("time", "request", "choice", "key", "policy", "action", "step", "categories", "ms")


def audit(
    place: Annotated[
        str, typer.Argument(help="The file or postgresql:// URL that settings name under audit.")
    ],
    since: Annotated[str, typer.Option(help="A date, a time (UTC), or an age: 90s 5m 2h 7d.")] = "",
    action: Annotated[
        Literal["pass", "repair", "block"] | None, typer.Option(help="Only these.")
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="At most so many, the newest; 0: all.")] = 100,
    as_json: Json = False,
) -> None:
    """List what a sidecar decided, the newest last; as JSON one decision a line, in full."""
    rows = list(read(place, moment(since), action, last))
    if as_json:
        for row in rows:
            show({**row, "time": when(row["time"])})
    else:
        tabulate(f"{len(rows)} decisions", COLUMNS, (cells(row) for row in rows))


def read(place: str, since: float, action: str | None, last: int) -> Iterator[dict[str, Any]]:
    """The decisions of a file, or of a database."""
    if "://" not in place:
        return store.read(Path(place), since, action, last)
    from mmguard.server import postgres

    return postgres.read(place, since, action, last)


def moment(since: str) -> float:
    """Seconds since 1970. Raises `InputError` for what is neither a time nor an age."""
    if not since:
        return 0.0
    if age := AGO.fullmatch(since):
        return time.time() - float(age[1]) * SECONDS[age[2]]
    try:
        found = datetime.fromisoformat(since)
    except ValueError as exc:
        raise InputError(f"--since {since!r}: give 2026-01-31, 2026-01-31T12:00 or 2h") from exc
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def cells(row: dict[str, Any]) -> list[Any]:
    told = {**row, "time": when(row["time"])[:19], "categories": ", ".join(row["categories"])}
    return [{**told, "ms": round(row["ms"])}[name] for name in COLUMNS]
