"""What the operator's page asks of the audit: decisions by what they are, newest first.

`Reader` is all that the page knows of a store; `FileReader` reads SQLite's file, by read-only
connections in threads of its own, and never for longer than `BUDGET`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field

from mmguard.fields import Strict
from mmguard.runtime import in_thread
from mmguard.server.failures import Refused
from mmguard.server.settings import Audit
from mmguard.server.store import LISTS, unpack

T = TypeVar("T")
Json = dict[str, Any]
NAMED = ("action", "step", "policy", "key", "route")
# Seconds that one question may take; ids that are looked at in one go; rows that name filters.
BUDGET, STRIDE, NEWEST = 3.0, 4000, 5000
# Decisions that quantiles are taken from.
SAMPLE = 2000
SHORT = 160


class Query(Strict):
    """Which decisions: equal to what is named, holding `text`, from `since` until `until`.

    Times are seconds since 1970. `before` and `after` are ids, neither of which belongs to it.
    """

    action: Literal["pass", "repair", "block"] | None = None
    step: str | None = None
    policy: str | None = None
    key: str | None = None
    route: str | None = None
    text: Annotated[str, Field(max_length=500)] = ""
    since: float | None = None
    until: float | None = None
    before: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50

    @property
    def named(self) -> dict[str, str]:
        values = {name: getattr(self, name) for name in NAMED}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(slots=True)
class Page:
    """Decisions, the newest first. There may be more before the id `more`, if that is one.

    `ended`: time was up first, so that fewer stand here than were asked for.
    """

    rows: list[Json] = field(default_factory=list)
    more: int | None = None
    ended: bool = False


class Reader(Protocol):
    """A store of decisions. Raises `Refused` where it cannot be read."""

    async def find(self, query: Query) -> Page: ...

    async def one(self, place: int) -> Json | None:
        """A decision in full, by its id."""
        ...

    async def names(self) -> dict[str, list[str]]:
        """What recent decisions have in the columns of `NAMED`."""
        ...

    async def counts(self, since: float, step: float) -> list[tuple[int, str, int]]:
        """How many, by steps of so many seconds after `since`, and by action."""
        ...

    async def sample(self, since: float) -> list[Json]:
        """At most about `SAMPLE` decisions, evenly spread, with times, trail and detail."""
        ...


def open_reader(settings: Audit) -> Reader | None:
    """The reader of whatever the settings say decisions are kept in."""
    return FileReader(settings.path) if settings.path else None


class FileReader:
    """The decisions of an SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path, self.room = path, asyncio.Semaphore(2)

    async def ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The work's result, from a thread that serves no request of a model."""
        async with self.room:
            return await in_thread(lambda: self.answer(work))

    def answer(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with opened(self.path) as connection:
                return work(connection)
        except sqlite3.Error as exc:
            told = "took too long; ask for a shorter time" if "interrupt" in str(exc) else str(exc)
            raise Refused(503, "audit_unreadable", f"the audit cannot be read: {told}") from exc

    async def find(self, query: Query) -> Page:
        return await self.ask(lambda connection: search(connection, query))

    async def one(self, place: int) -> Json | None:
        def work(connection: sqlite3.Connection) -> Json | None:
            row = connection.execute("select * from decisions where id = ?", (place,)).fetchone()
            return unpack(row) if row else None

        return await self.ask(work)

    async def names(self) -> dict[str, list[str]]:
        recent = f"order by id desc limit {NEWEST}"

        def work(connection: sqlite3.Connection) -> dict[str, list[str]]:
            return {
                name: sorted(
                    value
                    for (value,) in connection.execute(
                        f"select distinct {name} from (select {name} from decisions {recent})"
                    )
                )
                for name in NAMED
            }

        return await self.ask(work)

    async def counts(self, since: float, step: float) -> list[tuple[int, str, int]]:
        asked = (
            "select cast((time - ?) / ? as integer), action, count(*) from decisions"
            " where time >= ? group by 1, 2"
        )
        return await self.ask(
            lambda connection: [
                tuple(row) for row in connection.execute(asked, (since, step, since))
            ]
        )

    async def sample(self, since: float) -> list[Json]:
        def work(connection: sqlite3.Connection) -> list[Json]:
            [count] = connection.execute(
                "select count(*) from decisions where time >= ?", (since,)
            ).fetchone()
            asked = "select ms, trail, detail from decisions where time >= ? and id % ? = 0"
            every = max(1, -(-count // SAMPLE))
            return [unpack(row) for row in connection.execute(asked, (since, every))]

        return await self.ask(work)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, and is interrupted when its time is up."""
    uri, end = f"{path.resolve().as_uri()}?mode=ro", time.monotonic() + 2 * BUDGET
    with closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
        connection.row_factory = sqlite3.Row
        connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        yield connection


# -- searching ------------------------------------------------------------------


def search(connection: sqlite3.Connection, query: Query) -> Page:
    """A page, found by going back through the ids stride by stride while there is time."""
    page, end = Page(), time.monotonic() + BUDGET
    low, high = bounds(connection, query)
    while high > low:
        if time.monotonic() > end:
            page.more, page.ended = high, True
            break
        start = max(low, high - STRIDE)
        for row in select(connection, query, start, high):
            if query.text and not holds(row, query.text):
                continue
            page.rows.append(summarize(row))
            if len(page.rows) == query.limit:
                page.more = row["id"]
                return page
        high = start
    return page


def bounds(connection: sqlite3.Connection, query: Query) -> tuple[int, int]:
    """The lowest id that may be among them, and the id above the highest."""
    asked = "select min(id), max(id) from decisions where time >= ? and time < ?"
    since = -1e18 if query.since is None else query.since
    until = 1e18 if query.until is None else query.until
    whole = query.since is None and query.until is None
    if whole:
        first, last = connection.execute("select min(id), max(id) from decisions").fetchone()
    else:
        first, last = connection.execute(asked, (since, until)).fetchone()
    if first is None:
        return 0, 0
    low = first if query.after is None else max(first, query.after + 1)
    return low, last + 1 if query.before is None else min(last + 1, query.before)


def select(connection: sqlite3.Connection, query: Query, low: int, high: int) -> Iterator[Json]:
    """Decisions with low <= id < high; of those without the text, as many as SQLite can tell."""
    terms = ["id >= ?", "id < ?", *(f"{name} = ?" for name in query.named)]
    values: list[Any] = [low, high, *query.named.values()]
    for term, value in (("time >= ?", query.since), ("time < ?", query.until)):
        if value is not None:
            terms.append(term)
            values.append(value)
    if query.text:
        terms.append("(instr(lower(detail), lower(?)) or instr(lower(request), lower(?)))")
        values += [spelled(query.text), query.text]
    asked = f"select * from decisions where {' and '.join(terms)} order by id desc limit ?"
    # Python looks once more at what a text was found in, so that there is no limit to it.
    for row in connection.execute(asked, (*values, -1 if query.text else query.limit)):
        yield unpack(row)


def spelled(text: str) -> str:
    """A text as it stands inside JSON."""
    return json.dumps(text)[1:-1]


def holds(row: Json, text: str) -> bool:
    """Whether anybody's words, or the request's name, hold the text; case does not matter."""
    wanted = text.lower()
    return any(wanted in said.lower() for said in (row["request"], *said_in(row["detail"])))


def said_in(detail: Mapping[str, Any]) -> Iterator[str]:
    for message in detail.get("request", ()):
        yield message["text"]
    yield detail["answer"].get("text", "")
    for call in detail["calls"]:
        yield call["reply"].get("text", "")


def summarize(row: Json) -> Json:
    """A decision as it stands in a list."""
    detail = row["detail"]
    kept = {name: row[name] for name in row if name not in LISTS}
    asked = [m["text"] for m in detail.get("request", ()) if m["role"] == "user"]
    blamed = [finding for finding in row["trail"] if finding["action"] != "pass"]
    return kept | {
        "categories": row["categories"],
        "pictures": len(row["pictures"]),
        "excerpt": asked[-1][:SHORT] if asked else "",
        "blamed": blamed[0] if blamed else None,
        "score": max((finding["score"] for finding in row["trail"]), default=None),
    }
