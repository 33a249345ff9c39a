"""What the operator's page asks of the audit: decisions by what they are, newest first.

`Reader` is all that the page knows of a store, in SQL that SQLite and PostgreSQL both read; it
works in threads of its own, two at a time. `FileReader` reads SQLite's file by connections that
cannot write, and is interrupted when its time is up.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from mmguard.fields import Strict
from mmguard.runtime import in_thread
from mmguard.server.failures import Refused
from mmguard.server.settings import Audit

T = TypeVar("T")
Json = dict[str, Any]
# A query with `?` for its parameters, to its rows.
Ask = Callable[[str, Sequence[Any]], Iterable[Sequence[Any]]]
COLUMNS = (
    *("id", "time", "request", "choice", "route", "key", "policy", "action", "decision", "step"),
    *("categories", "trail", "detail", "asked", "pictures", "prompt", "completion", "ms"),
    "guard_ms",
)
LISTS = frozenset({"categories", "trail", "detail", "pictures"})
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


class Reader:
    """The decisions of one store. Raises `Refused` where it cannot be read.

    A dialect says how it finds a text in another, and how it cuts a number to a whole one.
    """

    find_text, cut = "instr", "cast({} as integer)"

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(2)

    def answer(self, work: Callable[[Ask], T]) -> T:
        """The work's result, in this thread, within about `BUDGET`."""
        raise NotImplementedError

    async def ask(self, work: Callable[[Ask], T]) -> T:
        """The work's result, from a thread that serves no request of a model."""
        async with self.room:
            return await in_thread(lambda: self.answer(work))

    async def find(self, query: Query) -> Page:
        return await self.ask(lambda ask: search(ask, query, self.find_text))

    async def one(self, place: int) -> Json | None:
        """A decision in full, by its id."""
        asked = f"select {', '.join(COLUMNS)} from decisions where id = ?"
        rows = await self.ask(lambda ask: list(ask(asked, (place,))))
        return unpack(rows[0]) if rows else None

    async def names(self) -> dict[str, list[str]]:
        """What recent decisions have in the columns of `NAMED`."""
        recent = f"from decisions order by id desc limit {NEWEST}"

        def distinct(ask: Ask, name: str) -> list[str]:
            return sorted(
                v for (v,) in ask(f"select distinct {name} from ({inner(name)}) as r", ())
            )

        def inner(name: str) -> str:
            return f"select {name} {recent}"

        return await self.ask(lambda ask: {name: distinct(ask, name) for name in NAMED})

    async def counts(self, since: float, step: float) -> list[tuple[int, str, int]]:
        """How many, by steps of so many seconds after `since`, and by action."""
        place = self.cut.format("(time - ?) / ?")
        asked = f"select {place}, action, count(*) from decisions where time >= ? group by 1, 2"
        rows = await self.ask(lambda ask: list(ask(asked, (since, step, since))))
        return [(int(place), action, count) for place, action, count in rows]

    async def sample(self, since: float) -> list[Json]:
        """At most about `SAMPLE` decisions, evenly spread, with times, trail and detail."""
        names = ("ms", "trail", "detail")
        spread = "where time >= ? and id - (id / ?) * ? = 0"

        def work(ask: Ask) -> list[Sequence[Any]]:
            [[count]] = ask("select count(*) from decisions where time >= ?", (since,))
            every = max(1, -(-count // SAMPLE))
            asked = f"select {', '.join(names)} from decisions {spread}"
            return list(ask(asked, (since, every, every)))

        return [unpack(row, names) for row in await self.ask(work)]


def unpack(row: Sequence[Any], names: Sequence[str] = COLUMNS) -> Json:
    told = dict(zip(names, row, strict=True))
    return {name: json.loads(value) if name in LISTS else value for name, value in told.items()}


class FileReader(Reader):
    """The decisions of an SQLite file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def answer(self, work: Callable[[Ask], T]) -> T:
        uri, end = f"{self.path.resolve().as_uri()}?mode=ro", time.monotonic() + 2 * BUDGET
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
                connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
                return work(connection.execute)
        except sqlite3.Error as exc:
            told = "took too long; ask for a shorter time" if "interrupt" in str(exc) else str(exc)
            raise unreadable(told) from exc


def unreadable(told: str) -> Refused:
    return Refused(503, "audit_unreadable", f"the audit cannot be read: {told}")


def open_reader(settings: Audit) -> Reader | None:
    """The reader of whatever the settings say decisions are kept in."""
    if settings.path or not settings.url:
        return FileReader(settings.path) if settings.path else None
    from mmguard.server.postgres_reader import PostgresReader

    return PostgresReader(settings.url)


# -- searching ------------------------------------------------------------------


def search(ask: Ask, query: Query, find_text: str) -> Page:
    """A page, found by going back through the ids stride by stride while there is time."""
    page, end = Page(), time.monotonic() + BUDGET
    low, high = bounds(ask, query)
    while high > low:
        if time.monotonic() > end:
            page.more, page.ended = high, True
            break
        start = max(low, high - STRIDE)
        found = [unpack(row) for row in ask(*select(query, start, high, find_text))]
        for row in found:
            if query.text and not holds(row, query.text):
                continue
            page.rows.append(summarize(row))
            if len(page.rows) == query.limit:
                page.more = row["id"]
                return page
        # As many as were asked for: there may be more in this stride.
        high = found[-1]["id"] if len(found) == query.limit else start
    return page


def bounds(ask: Ask, query: Query) -> tuple[int, int]:
    """The lowest id that may be among them, and the id above the highest."""
    where, values = times(query)
    [[first, last]] = ask(f"select min(id), max(id) from decisions where {where}", values)
    if first is None:
        return 0, 0
    low = first if query.after is None else max(first, query.after + 1)
    return low, last + 1 if query.before is None else min(last + 1, query.before)


def times(query: Query) -> tuple[str, list[Any]]:
    pairs = (("time >= ?", query.since), ("time < ?", query.until))
    told = [(term, value) for term, value in pairs if value is not None]
    return " and ".join(["1 = 1", *(term for term, _ in told)]), [value for _, value in told]


def select(query: Query, low: int, high: int, find_text: str) -> tuple[str, list[Any]]:
    """A query for decisions with low <= id < high, and its parameters.

    It finds whatever may hold the text; Python looks once more at where it stands.
    """
    where, values = times(query)
    terms = [where, "id >= ?", "id < ?", *(f"{name} = ?" for name in query.named)]
    values += [low, high, *query.named.values()]
    if query.text:
        held = [f"{find_text}(lower({name}), lower(?)) > 0" for name in ("detail", "request")]
        terms.append(f"({' or '.join(held)})")
        values += [spelled(query.text), query.text]
    found = f"select {', '.join(COLUMNS)} from decisions where {' and '.join(terms)}"
    return f"{found} order by id desc limit ?", [*values, query.limit]


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
