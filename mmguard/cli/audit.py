"""`mmguard audit`: what a sidecar decided, from the file that it keeps."""

from __future__ import annotations

import re
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmguard.cli.console import Json, show, tabulate
from mmguard.errors import InputError
from mmguard.server.store import read

AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COLUMNS = ("time", "request", "choice", "key", "policy", "action", "step", "categories", "ms")


def audit(
    file: Annotated[Path, typer.Argument(help="The file that settings name under audit.path.")],
    since: Annotated[str, typer.Option(help="A date, a time (UTC), or an age: 90s 5m 2h 7d.")] = "",
    action: Annotated[
        Literal["pass", "repair", "block"] | None, typer.Option(help="Only these.")
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="At most so many, the newest; 0: all.")] = 100,
    as_json: Json = False,
) -> None:
    """List what a sidecar decided, the newest last; as JSON one decision a line, in full."""
    rows = deque(read(file, moment(since), action), maxlen=last or None)
    if as_json:
        for row in rows:
            show({**row, "time": when(row["time"])})
    else:
        tabulate(f"{len(rows)} decisions", COLUMNS, (cells(row) for row in rows))


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
