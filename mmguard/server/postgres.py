"""The audit on PostgreSQL: one table that many sidecars write to, over psycopg.

A batch is written once even where its connection broke while it was committed: each writer
keeps the number of its last one beside its rows. No error says the password, or a row.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from mmguard.errors import InputError, MissingExtra, MmguardError
from mmguard.server.schema import DAY, INSERT, VERSION, Row, create, select, unpack

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

# What a URL may say otherwise. Seconds, but for milliseconds of `tcp_user_timeout`: a server
# that is gone is noticed within them.
USUAL = {
    "connect_timeout": 5,
    "application_name": "mmguard",
    "client_encoding": "UTF8",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 10000,
}
SECRET = ("password", "sslpassword", "oauth_client_secret")
MARK = f"mmguard's audit, version {VERSION}"
# Advisory locks: whoever makes the table, and whoever trims it, is one at a time.
MAKING, TRIMMING = 0x6D6D67756172, 0x6D6D67756173
KNOWN = """
select to_regclass('decisions') is not null,
       coalesce(obj_description(to_regclass('decisions'), 'pg_class'), '')
"""
MADE = (
    create("bigint generated always as identity"),
    "create index decisions_by_time on decisions (time)",
    """create table if not exists decisions_writers
       (writer text primary key, batch bigint not null, time double precision not null)""",
    f"comment on table decisions is '{MARK.replace(chr(39), chr(39) * 2)}'",
)
CLAIM = """
insert into decisions_writers values (%s, %s, %s)
on conflict (writer) do update set batch = excluded.batch, time = excluded.time
where decisions_writers.batch < excluded.batch
"""
# Rows in one statement that forgets, and seconds for all of them, which new rows wait for.
CHUNK, PAUSE = 5000, 2.0
OLD = f"select id from decisions where time < %s order by time limit {CHUNK}"
OLDEST = "select id from decisions order by id limit %s"
ENDS = " union all ".join(
    f"(select pg_column_size(d.*) as size from decisions d order by id {way} limit 500)"
    for way in ("asc", "desc")
)
SIZE = f"select count(*), (select avg(size)::float8 from ({ENDS}) as sample) from decisions"


class StoreError(MmguardError):
    """What PostgreSQL would not do, in words that may be logged."""


class Postgres:
    """The rows of one table, in `schema.Store`'s terms, by a writer of its own name.

    Raises `InputError` for what is no URL, and else `StoreError`.
    """

    def __init__(self, url: str) -> None:
        self.psycopg, self.parameters = driver(), parse(url)
        self.writer, self.batch = uuid.uuid4().hex, 0
        self.connection: Connection[Any] | None = None

    def append(self, rows: Sequence[Row]) -> None:
        with self.working() as cursor:
            cursor.execute(CLAIM, (self.writer, self.batch + 1, time.time()))
            if cursor.rowcount:
                cursor.executemany(spell(INSERT), rows)
        self.batch += 1

    def trim(self, days: float | None, mib: float | None, due: bool) -> None:
        """What takes too long goes on a minute later. Size is that of the rows, about."""
        if not due:
            return
        with self.working() as cursor:
            cursor.execute("select pg_try_advisory_xact_lock(%s)", (TRIMMING,))
            if not one(cursor)[0]:
                return
            end, now = time.monotonic() + PAUSE, time.time()
            cursor.execute("delete from decisions_writers where time < %s", (now - DAY,))
            if days is not None:
                expire(cursor, now - days * DAY, end)
            if mib is not None:
                shrink(cursor, mib * 2**20, end)

    @contextmanager
    def working(self) -> Iterator[Cursor[Any]]:
        """A transaction."""
        with plain(self.parameters):
            self.connection = self.connection or self.open()
            with self.connection.transaction(), self.connection.cursor() as cursor:
                cursor.execute("set local statement_timeout = 20000")
                yield cursor

    def open(self) -> Connection[Any]:
        """A connection, and the table if this is the first."""
        made = self.psycopg.connect(**self.parameters, autocommit=True)
        made.prepare_threshold = None
        try:
            with made.transaction(), made.cursor() as cursor:
                prepare(cursor)
        except BaseException:
            made.close()
            raise
        return cast("Connection[Any]", made)

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            with suppress(self.psycopg.Error):
                connection.close()


def prepare(cursor: Cursor[Any]) -> None:
    """The table, made by one of those who miss it."""
    cursor.execute("select pg_advisory_xact_lock(%s)", (MAKING,))
    cursor.execute(KNOWN)
    known, mark = one(cursor)
    if not known:
        for statement in MADE:
            cursor.execute(statement)
    elif mark != MARK:
        raise StoreError("its table decisions is another program's, or another version's")


def expire(cursor: Cursor[Any], oldest: float, end: float) -> None:
    """Forget what is older than this."""
    while time.monotonic() < end:
        cursor.execute(forget(OLD), (oldest,))
        if cursor.rowcount < CHUNK:
            return


def shrink(cursor: Cursor[Any], limit: float, end: float) -> None:
    """Forget the oldest until the rest fits."""
    while time.monotonic() < end:
        cursor.execute(SIZE)
        count, size = one(cursor)
        if count < 2 or count * size <= limit:
            return
        excess = int(count - limit / size) + 1
        cursor.execute(forget(OLDEST), (min(CHUNK, count - 1, excess),))


def forget(query: str) -> str:
    return f"delete from decisions where id in ({query})"


def spell(query: str) -> str:
    return query.replace("?", "%s")


def one(cursor: Cursor[Any]) -> Row:
    row: Row = cursor.fetchone() or ()
    return row


# -- reading --------------------------------------------------------------------


def read(
    url: str, since: float = 0.0, action: str | None = None, last: int | None = None
) -> Iterator[dict[str, Any]]:
    """Decisions, the oldest first. Raises `InputError` for what is no audit."""
    psycopg, parameters = driver(), parse(url)
    query, given = select(since, action, last)
    try:
        with plain(parameters), psycopg.connect(**parameters) as connection:
            connection.read_only = True
            with connection.cursor("decisions") as cursor:
                cursor.itersize = 1000
                yield from map(unpack, cursor.execute(spell(query), given))
    except StoreError as exc:
        raise InputError(f"{safe(url)} cannot be read as an audit: {exc}") from None


# -- what may be said -----------------------------------------------------------


def driver() -> ModuleType:
    try:
        import psycopg
    except ImportError as exc:
        raise MissingExtra("psycopg", "postgres", "an audit on PostgreSQL") from exc
    return psycopg


def parse(url: str) -> dict[str, Any]:
    """What to connect by. Raises `InputError`, which says nothing of an unreadable URL."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(url)
    except ProgrammingError:
        found = {"port": "none"}
    ports, places = str(found.get("port", "")), (found.get("host", ""), found.get("dbname", ""))
    if not re.fullmatch(r"[\d,]*", ports) or any("@" in str(place) for place in places):
        told = "audit.url cannot be read: give postgresql://user:password@host:5432/database"
        raise InputError(f"{told}, with @ : / ? # % of a password as %40 %3A %2F %3F %23 %25")
    return USUAL | found


def safe(url: str) -> str:
    """The URL without its user, password and options."""
    scheme, _, rest = url.partition("://")
    place, _, options = rest.partition("?")
    return f"{scheme}://" + ("..." if "@" in options else place.rpartition("@")[2])


@contextmanager
def plain(parameters: dict[str, Any]) -> Iterator[None]:
    """psycopg's errors as `StoreError`: the first line, where no row is told, and no secret."""
    import psycopg

    try:
        yield
    except psycopg.Error as exc:
        text = (str(exc).splitlines() or [""])[0]
        for name in SECRET:
            if secret := str(parameters.get(name) or ""):
                text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        raise StoreError(f"{type(exc).__name__}: {text}") from None
