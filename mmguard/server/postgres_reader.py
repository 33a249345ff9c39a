"""The operator's page on PostgreSQL: decisions read by transactions that cannot write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from mmguard.server.postgres import StoreError, driver, parse, plain, spell
from mmguard.server.reader import BUDGET, Ask, Reader, unreadable

T = TypeVar("T")


class PostgresReader(Reader):
    """The decisions of one database, by a connection for each question."""

    find_text, cut = "strpos", "trunc({})"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.psycopg, self.parameters = driver(), parse(url)

    def answer(self, work: Callable[[Ask], T]) -> T:
        limit = f"set local statement_timeout = {int(2000 * BUDGET)}"
        try:
            with plain(self.parameters), self.psycopg.connect(**self.parameters) as connection:
                connection.read_only = True
                connection.execute(limit)
                return work(asking(connection))
        except StoreError as exc:
            raise unreadable(str(exc)) from exc


def asking(connection: Any) -> Ask:
    def ask(query: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        found: Iterable[Sequence[Any]] = connection.execute(spell(query), values)
        return found

    return ask
