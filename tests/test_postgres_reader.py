"""The operator's page on PostgreSQL finds what it finds in a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmguard.server import reader as reading
from mmguard.server.failures import Refused
from mmguard.server.reader import FileReader, Page, Query, Reader, open_reader
from mmguard.server.settings import Audit as How
from tests import postgres as fake
from tests.test_postgres import opened
from tests.test_reader import fill, offer

pytestmark = pytest.mark.skipif(bool(fake.missing()), reason=fake.missing())
TEXTS = ("fine", "Größe 100%", "sha256", 'a "quoted" \\ word', "<b>?</b>")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Reader, float]]:
    """The same decisions in a file and in a database."""
    now, path = time.time(), tmp_path_factory.mktemp("reader") / "a.db"
    rows: list[Mapping[str, Any]] = [
        {"action": action, "step": "ab"[i % 2], "key": "", "text": TEXTS[i % 5], "age": i}
        for i, action in enumerate(["pass", "repair", "block"] * 8)
    ]
    with fake.served() as server:
        url = server.schema("reader")
        fill(path, rows, now)
        with opened(url, texts=True) as audit:
            offer(audit, rows, now)
        table = open_reader(How(url=url))
        assert table
        yield FileReader(path), table, now


def told(page: Page) -> tuple[Any, ...]:
    return [row["id"] for row in page.rows], page.more, page.ended


QUERIES: list[dict[str, Any]] = [
    {},
    {"action": "block", "limit": 3},
    {"step": "a", "before": 9},
    {"after": 20},
    *({"text": text} for text in ("größe", "100%", '"quoted" \\', "text", "?", "%s")),
    {"since": -9.5, "until": -3.5},
]


@pytest.mark.parametrize("query", QUERIES)
def test_both_find_the_same(
    query: dict[str, Any], both: tuple[Reader, Reader, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRIDE", 5)
    moved = {n: v + both[2] if n in ("since", "until") else v for n, v in query.items()}
    one, other = (told(asyncio.run(r.find(Query(**moved)))) for r in both[:2])
    assert one == other


def test_both_tell_the_same(both: tuple[Reader, Reader, float]) -> None:
    one, other = (asyncio.run(tell(reader, both[2])) for reader in both[:2])
    assert one == other
    assert one[3]["action"] == "block"


async def tell(reader: Reader, now: float) -> list[Any]:
    counts = sorted(await reader.counts(now - 20.5, 3.0))
    sample = sorted(str(row) for row in await reader.sample(now - 20.5))
    found, missing = await reader.one(3), await reader.one(99)
    assert missing is None
    # Each has a name of its own.
    return [await reader.names(), counts, sample, {**(found or {}), "request": ""}]


def test_a_database_is_only_read(both: tuple[Reader, Reader, float]) -> None:
    table = both[1]
    with pytest.raises(Refused, match="read-only"):
        asyncio.run(table.ask(lambda ask: ask("delete from decisions", ())))
    assert len(asyncio.run(table.find(Query())).rows) == 24


def test_a_database_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = open_reader(How(url=f"postgresql:///none?host={tmp_path}"))
    assert gone
    with pytest.raises(Refused, match="cannot be read"):
        asyncio.run(gone.find(Query()))
