"""The audit on PostgreSQL: what the file promises, by many sidecars, through restarts."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmguard.cli import app as commands
from mmguard.errors import InputError
from mmguard.server import schema
from mmguard.server.audit import Audit
from mmguard.server.entry import Entry
from mmguard.server.settings import Audit as How, Settings, load_settings
from mmguard.types import Finding
from tests import postgres as fake
from tests.postgres import SECRET, SPELLED, Server
from tests.test_audit import entry, opened as filed, rows as read_file, until
from tests.test_recorded import CHAT, fine, status
from tests.upstream import app, write_policy

pytestmark = pytest.mark.skipif(bool(fake.missing()), reason=fake.missing())
COUNT = iter(range(1000))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with fake.served() as found:
        yield found


@pytest.fixture
def url(server: Server) -> str:
    """A schema for each test."""
    return server.schema(f"s{next(COUNT)}")


def store(url: str) -> Any:
    from mmguard.server.postgres import Postgres

    return Postgres(url)


def rows(url: str) -> list[dict[str, Any]]:
    from mmguard.server.postgres import read

    return list(read(url))


@contextmanager
def opened(url: str, **how: Any) -> Iterator[Audit]:
    given, limit = how.pop("store", None), how.pop("limit", 8192)
    audit = Audit(How(url=url, **how), given, limit)
    try:
        yield audit
    finally:
        audit.close(10)


def named(url: str) -> list[str]:
    return [row["request"] for row in rows(url)]


# -- what is written ------------------------------------------------------------


def test_closing_writes_all_that_was_accepted(url: str) -> None:
    with opened(url) as audit:
        assert all(audit.offer(entry(choices=2, name=str(i))) for i in range(700))
    assert (audit.written, audit.lost, audit.waiting) == (1400, 0, 0)
    found = [(int(row["request"]), row["choice"]) for row in rows(url)]
    assert found == [(i, choice) for i in range(700) for choice in (0, 1)]
    assert not audit.offer(entry())


@pytest.mark.parametrize("texts", [True, False])
def test_a_row_is_what_the_file_would_hold(texts: bool, url: str, tmp_path: Path) -> None:
    found = Finding("harm", 0.9, categories={"hate": 0.9}, stage="output", action="block", ms=3)
    made = [entry("fine", 2, trail=(found,)), entry("\ud800 a\0b é")]
    usage = {"prompt_tokens": 2**40, "completion_tokens": 5}
    with opened(url, texts=texts) as one, filed(tmp_path / "a.db", texts=texts) as other:
        for e in made:
            one.offer(Entry(e.visit, 0.5, e.request, e.answers, usage))
            other.offer(Entry(e.visit, 0.5, e.request, e.answers, usage))
    assert rows(url) == read_file(tmp_path / "a.db")
    assert len(rows(url)) == 3


def test_many_sidecars_write_to_one_table(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They meet at an empty database, and trim whenever they have written."""
    monkeypatch.setattr("mmguard.server.audit.TRIM", 0.0)
    audits: list[Audit] = []
    makers = [
        threading.Thread(target=lambda: audits.append(Audit(How(url=url, days=1, mib=64))))
        for _ in range(3)
    ]
    run(makers)
    writers = [
        threading.Thread(
            target=lambda a=audit, k=k: [a.offer(entry(name=f"{k}.{i}")) for i in range(100)]
        )
        for k, audit in enumerate(audits * 2)
    ]
    run(writers)
    for audit in audits:
        assert not audit.failing
        audit.close(10)
    assert [(audit.written, audit.lost) for audit in audits] == [(200, 0)] * 3
    names = named(url)
    assert sorted(names) == sorted(f"{k}.{i}" for k in range(6) for i in range(100))
    for k in range(6):
        assert [n for n in names if n.startswith(f"{k}.")] == [f"{k}.{i}" for i in range(100)]


def run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- what goes wrong --------------------------------------------------------------


def test_a_restart_loses_nothing_and_doubles_nothing(url: str, server: Server) -> None:
    with opened(url) as audit:
        for i in range(200):
            audit.offer(entry(name=str(i)))
        until(lambda: audit.written > 0)
        server.stop()
        try:
            start = time.perf_counter()
            for i in range(200, 400):
                assert audit.offer(entry(name=str(i)))
            assert time.perf_counter() - start < 0.5
            until(lambda: audit.failing)
            assert not audit.healthy()
        finally:
            server.start()
        until(lambda: audit.waiting == 0)
        assert audit.healthy()
    assert (audit.written, audit.lost) == (400, 0)
    assert named(url) == [str(i) for i in range(400)]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(url: str) -> None:
    known, lost = store(url), [True, True]

    class Deaf:
        def append(self, given: Any) -> None:
            before = known.batch
            known.append(given)
            if lost:
                known.batch = before
                raise ConnectionError(lost.pop())

        trim, close = staticmethod(known.trim), staticmethod(known.close)

    with opened(url, store=Deaf()) as audit:
        for i in range(50):
            audit.offer(entry(name=str(i)))
        until(lambda: not lost)
        for i in range(50, 100):
            audit.offer(entry(name=str(i)))
        until(lambda: audit.waiting == 0)
    assert named(url) == [str(i) for i in range(100)]


def test_what_a_stopped_server_never_takes_is_counted(url: str, server: Server) -> None:
    server.stop()
    try:
        with opened(url, limit=10) as audit:
            assert [audit.offer(entry()) for _ in range(12)] == [True] * 10 + [False] * 2
        assert (audit.written, audit.lost) == (0, 12)
    finally:
        server.start()


def test_a_server_that_hangs_is_not_healthy_and_nobody_waits(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmguard.server.audit.STUCK", 0.1)
    with opened(url) as audit, server.connect() as other:
        assert audit.healthy()
        with other.transaction():
            other.execute(f"lock table {spot(url)}.decisions in access exclusive mode")
            start = time.perf_counter()
            assert audit.offer(entry())
            assert time.perf_counter() - start < 0.1
            until(lambda: not audit.healthy())
            assert not audit.failing
        until(lambda: audit.written == 1)
        until(audit.healthy)


def spot(url: str) -> str:
    return url.rpartition("%3D")[2]


def test_a_closed_sidecar_opens_when_the_server_is_back(
    url: str, server: Server, tmp_path: Path
) -> None:
    server.stop()
    try:
        sidecar = app(fine, write_policy(tmp_path), audit={"url": url, "fail_closed": True})
        assert status(sidecar, CHAT) == [503]
    finally:
        server.start()
    watch = sidecar.state.sidecar.watch
    until(watch.audit.healthy)
    assert status(sidecar, CHAT) == [200]
    watch.close()
    assert len(rows(url)) == 1


def test_another_programs_table_is_left_alone(url: str, server: Server) -> None:
    with server.connect() as connection:
        connection.execute(f"create table {spot(url)}.decisions (mine text)")
    with opened(url) as audit:
        assert not audit.healthy()
        audit.offer(entry())
    assert audit.lost == 1
    with pytest.raises(InputError, match="cannot be read as an audit"):
        rows(url)


# -- how long it is kept ----------------------------------------------------------


def test_the_old_goes_by_one_at_a_time(url: str, server: Server) -> None:
    now = time.time()
    with opened(url) as audit:
        for age in (40, 31, 29, 0):
            audit.offer(entry(begun=now - age * schema.DAY))
    known = store(url)
    with server.connect() as other, other.transaction():
        from mmguard.server.postgres import TRIMMING

        other.execute("select pg_advisory_xact_lock(%s)", (TRIMMING,))
        known.trim(30, None, True)
        assert len(rows(url)) == 4
    known.trim(30, None, False)
    assert len(rows(url)) == 4
    known.trim(30, None, True)
    known.close()
    assert [round((now - row["time"]) / schema.DAY) for row in rows(url)] == [29, 0]


def test_the_oldest_goes_when_there_is_too_much(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmguard.server.postgres.CHUNK", 150)
    with opened(url, texts=True) as audit:
        for i in range(1000):
            audit.offer(entry(f"{i:04d}" + "x" * 300))
    known = store(url)
    known.trim(None, 0.5, True)
    kept = [row["id"] for row in rows(url)]
    assert kept == list(range(kept[0], 1001))
    with server.connect() as connection:
        connection.execute(f"vacuum full {spot(url)}.decisions")
        (used,) = connection.execute(
            f"select pg_table_size('{spot(url)}.decisions') / 1048576.0"
        ).fetchone()
    assert 0.4 < used < 0.65
    known.trim(None, 1e-6, True)
    known.close()
    assert len(rows(url)) == 1


# -- the password, settings, and the command ----------------------------------------


@pytest.mark.parametrize("password", [SPELLED, "kqxzw-wrong"])
def test_the_password_is_never_told(
    password: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The right one may not make a table; the wrong one may do nothing."""
    url = f"postgresql://guest:{password}@/postgres?host={server.folder}"
    with caplog.at_level(logging.DEBUG), opened(url) as audit:
        assert not audit.healthy()
    with pytest.raises(InputError) as told:
        rows(url)
    heard = caplog.text + str(told.value) + repr(told.value.__cause__) + repr(audit.settings)
    assert "cannot be written" in heard
    assert "guest" in heard or "permission" in heard
    assert not any(secret in heard for secret in (SECRET, SPELLED, "kqxzw"))


@pytest.mark.parametrize("said", [SECRET, SPELLED, "fine"])
def test_no_error_tells_the_password_or_a_row(said: str) -> None:
    from psycopg import IntegrityError

    from mmguard.server.postgres import StoreError, parse, plain

    with (
        pytest.raises(StoreError) as told,
        plain(parse(f"postgresql://guest:{SPELLED}@host/db")),
    ):
        raise IntegrityError(f"not so: {said}\nDETAIL:  Failing row contains (kqxzw)")
    assert str(told.value) == f"IntegrityError: not so: {said if said == 'fine' else '***'}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://guest:kqxzw pass@host/db",
        "postgresql://guest:kqxzw/x@host/db",
        "postgresql://guest:12/kqxzw@host/db",
        "postgresql://guest:kqxzw%zz@host/db",
        "postgresql://guest@host/db?pass=kqxzw",
        "mysql://guest:kqxzw@host/db",
    ],
)
def test_an_unreadable_url_is_not_told_either(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "side.yaml"
    path.write_text(json.dumps({"upstream": "http://up/v1", "audit": {"url": url}}))
    with pytest.raises(InputError) as told:
        Audit(load_settings(path, {}, {}).audit)
    assert "postgresql://user" in str(told.value)
    assert "kqxzw" not in str(told.value)
    with pytest.raises(InputError) as told:
        commands(["audit", url], standalone_mode=False)
    assert "kqxzw" not in str(told.value)


def test_settings() -> None:
    known = load_settings(None, {"upstream": "http://up"}, {"MMGUARD_AUDIT": "postgres://u@h/d"})
    assert known.audit == How(url="postgres://u@h/d")
    assert known.audit.kept
    with pytest.raises(ValueError, match="or else a url") as told:
        Settings(upstream="u", audit={"path": "a", "url": "postgres://u:kqxzw@h"})  # type: ignore[arg-type]  # pydantic reads it
    assert "kqxzw" not in str(told.value)


def test_the_command(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    with opened(url) as audit:
        for age, action in ((7200, "block"), (60, "pass"), (30, "block"), (1, "pass")):
            audit.offer(entry(action=action, begun=now - age))

    def told(*asked: str) -> list[int]:
        commands(["audit", url, *asked, "--json"], standalone_mode=False)
        return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]

    assert told() == told("--last", "0") == [1, 2, 3, 4]
    assert told("--action", "block") == [1, 3]
    assert told("--last", "1") == [4]
    assert told("--since", "1h", "--action", "pass") == [2, 4]
    commands(["audit", url], standalone_mode=False)
    assert capsys.readouterr().out.startswith("4 decisions")
