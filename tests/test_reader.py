"""Decisions read back for the operator's page: what was asked for, once each, and nobody waits."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings as hypothesis, strategies as st

from mmguard.server import reader as reading, store
from mmguard.server.audit import Audit
from mmguard.server.entry import Entry
from mmguard.server.failures import Refused
from mmguard.server.reader import Ask, FileReader, Page, Query, search
from mmguard.server.settings import Audit as How
from mmguard.server.visit import Visit
from mmguard.types import Call, Guarded, Message, Reply, Request, Text
from tests.upstream import Json

NAMES = st.sampled_from(["a", "b"])
ROW = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["pass", "repair", "block"]),
        "step": NAMES,
        "key": NAMES,
        "text": st.sampled_from(["fine", "Größe 100%", "sha256", 'a "quoted" \\ word', "<b>x</b>"]),
        "age": st.integers(0, 50),
    }
)

EXAMPLE = {"action": "pass", "step": "a", "key": "", "text": "fine", "age": 1}


def offer(audit: Audit, rows: list[Mapping[str, Any]], now: float) -> None:
    """Decisions as if they had been made `age` seconds ago."""
    for row in rows:
        visit = Visit(key=row["key"])
        visit.begun = now - row["age"]
        calls = (Call("draft", "target", Reply(row["text"])),)
        answer = Guarded("ok", row["action"], row["step"], calls=calls, policy="p@1")
        request = Request((Message("user", (Text(row["text"]),)),))
        audit.offer(Entry(visit, 0.01, request, {0: answer}))


def fill(path: Path, rows: list[Mapping[str, Any]], now: float) -> list[Json]:
    """What an audit kept of them, the oldest first."""
    audit = Audit(How(path=path, texts=True))
    offer(audit, rows, now)
    audit.close(10)
    return list(store.read(path))


def find(reader: FileReader, **query: Any) -> Page:
    return asyncio.run(reader.find(Query(**query)))


@hypothesis(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(ROW, max_size=25),
    st.fixed_dictionaries(
        {},
        optional={
            "action": st.sampled_from(["pass", "block"]),
            "step": NAMES,
            "key": NAMES,
            "text": st.sampled_from(["größe", "100%", "SHA256", '"quoted" \\', "text", "<b>"]),
            "since": st.integers(0, 40),
            "until": st.integers(0, 40),
        },
    ),
    st.integers(1, 7),
)
@example([EXAMPLE] * 3, {"text": "text"}, 2)
def test_pages_hold_what_was_asked_for_once_each(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Any],
    query: Json,
    limit: int,
) -> None:
    monkeypatch.setattr(reading, "STRIDE", 3)
    for old in tmp_path.iterdir():
        old.unlink()
    now = time.time()
    for name in ("since", "until"):
        if name in query:
            query = {**query, name: now - query[name] - 0.5}
    kept = fill(tmp_path / "a.db", rows, now)
    wanted = [
        row["id"]
        for row in reversed(kept)
        if all(row[n] == query[n] for n in ("action", "step", "key") if n in query)
        and query.get("text", "").lower() in row["detail"]["request"][0]["text"].lower()
        and query.get("since", 0) <= row["time"] < query.get("until", 1e18)
    ]
    found, before = list[int](), None
    for _ in range(len(rows) + 2):
        page = find(FileReader(tmp_path / "a.db"), **query, limit=limit, before=before)
        assert len(page.rows) <= limit
        found += [row["id"] for row in page.rows]
        before = page.more
        if before is None:
            break
    assert found == wanted


def test_what_is_newer_is_asked_for_by_id(tmp_path: Path) -> None:
    kept = fill(tmp_path / "a.db", [EXAMPLE] * 5, time.time())
    page = find(FileReader(tmp_path / "a.db"), after=kept[2]["id"])
    assert [row["id"] for row in page.rows] == [5, 4]


def test_when_time_is_up_the_search_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRIDE", 2)
    fill(tmp_path / "a.db", [{**EXAMPLE, "action": "block"}, *[EXAMPLE] * 9], time.time())
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        ticks = iter(range(99))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
        first = search(connection.execute, Query(action="block"), "instr")
        assert (first.rows, first.ended) == ([], True)
        assert first.more is not None
        rest = Query(action="block", before=first.more)
        second = search(connection.execute, rest, "instr")
    assert [row["id"] for row in second.rows] == [1]


def test_a_question_that_never_ends_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "a.db", [], time.time())
    monkeypatch.setattr(reading, "BUDGET", 0.05)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
    reader = FileReader(tmp_path / "a.db")
    with pytest.raises(Refused, match="took too long"):
        asyncio.run(reader.ask(lambda ask: list(ask(endless, ()))))


def test_reading_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The loop goes on, and the writer writes, while a question is under way."""
    fill(tmp_path / "a.db", [EXAMPLE], time.time())
    slow = "with recursive n(i) as (select 1 union all select i + 1 from n limit 1000000)"
    reader, beats = FileReader(tmp_path / "a.db"), list[float]()

    def read(ask: Ask) -> int:
        [[found]] = ask(f"{slow} select count(*) from n", ())
        return int(found)

    async def run() -> int:
        work = asyncio.ensure_future(reader.ask(read))
        await asyncio.to_thread(fill, tmp_path / "a.db", [EXAMPLE], time.time())
        while not work.done():
            beats.append(time.perf_counter())
            await asyncio.sleep(0.001)
        return await work

    assert asyncio.run(run()) == 1000000
    assert len(list(store.read(tmp_path / "a.db"))) == 2
    gaps = sorted(after - before for before, after in pairwise(beats))
    assert gaps[len(gaps) // 2] < 0.05


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    fill(tmp_path / "a.db", [], time.time())
    reader = FileReader(tmp_path / "a.db")
    with pytest.raises(Refused, match="readonly"):
        asyncio.run(reader.ask(lambda ask: ask("delete from decisions", ())))


def test_a_sample_is_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SAMPLE", 5)
    fill(tmp_path / "a.db", [EXAMPLE] * 20, time.time())
    found = asyncio.run(FileReader(tmp_path / "a.db").sample(0))
    assert len(found) == 5
    assert json.dumps(found[0]["detail"])
