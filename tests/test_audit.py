"""The audit: what was accepted is written, whole, without words, and nobody waits for it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis, strategies as st

from mmguard.errors import InputError
from mmguard.server import schema, store
from mmguard.server.audit import Audit
from mmguard.server.entry import Entry
from mmguard.server.settings import Audit as How
from mmguard.server.visit import Visit
from mmguard.types import Call, Finding, Guarded, Opaque, Reply, Usage
from tests.world import PICTURE, ask

ASK = {"model": "up", "messages": [{"role": "user", "content": "what is this?"}]}


def entry(text: str = "fine", choices: int = 1, begun: float | None = None, **more: Any) -> Entry:
    visit = Visit(more.pop("name", "req"))
    visit.begun = begun or time.time()
    draft = Call("draft", "target", Reply(text))
    known = {"action": "pass", "step": "answer", "calls": (draft,), "policy": "p@1", **more}
    guarded = Guarded(text, **known)
    return Entry(visit, 0.5, ask(text, PICTURE), dict.fromkeys(range(choices), guarded))


@contextmanager
def opened(path: Path, connect: store.Connect = store.open_file, **how: Any) -> Iterator[Audit]:
    limit = how.pop("limit", 8192)
    audit = Audit(How(path=path, **how), store.File(path, connect), limit)
    try:
        yield audit
    finally:
        audit.close(10)


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def rows(path: Path) -> list[dict[str, Any]]:
    return list(store.read(path))


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


# -- what is written ------------------------------------------------------------


def test_closing_writes_all_that_was_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmguard.server.audit.BATCH", 64)
    path = tmp_path / "a.db"
    with opened(path) as audit:
        assert all(audit.offer(entry(choices=2, name=str(i))) for i in range(700))
    assert (audit.written, audit.lost, audit.waiting) == (1400, 0, 0)
    found = [(int(row["request"]), row["choice"]) for row in rows(path)]
    assert found == [(i, choice) for i in range(700) for choice in (0, 1)]
    assert not audit.offer(entry())
    assert audit.lost == 1
    assert path.stat().st_mode & 0o077 == 0


def test_a_row_says_what_was_decided_and_nobodys_words(tmp_path: Path) -> None:
    found = Finding("harm", 0.9, categories={"hate": 0.9}, stage="output", action="block", ms=3)
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    made = entry("kqxzw", 2, action="block", step="output", decision="block", trail=(found,))
    with opened(tmp_path / "a.db") as audit:
        audit.offer(Entry(made.visit, 0.5, made.request, made.answers, usage))
    first, second = rows(tmp_path / "a.db")
    assert (first["action"], first["decision"], first["step"]) == ("block", "block", "output")
    assert (first["request"], first["policy"], first["categories"]) == ("req", "p@1", ["hate"])
    assert first["trail"][0]["score"] == 0.9
    assert (first["ms"], first["guard_ms"]) == (500, 3)
    assert (first["prompt"], first["completion"], second["prompt"]) == (7, 5, 0)
    assert len(first["pictures"][0]) == len(first["asked"]) == 64
    assert first["detail"]["answer"]["chars"] == 5
    assert b"kqxzw" not in everything(tmp_path)


SECRETS = st.text("kqxzwKQXZW", min_size=12, max_size=20)
ERRORS = st.sampled_from(["{}", "ValueError: {}", "{}: no", "StepError: {}"])


@hypothesis(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SECRETS, ERRORS)
def test_no_words_without_opt_in(tmp_path: Path, secret: str, error: str) -> None:
    """Wherever a caller, a model, a server or a failure may put them."""
    told = error.format(secret)
    trail = (
        Finding("harm", 0.9, secret, reason=secret, stage="output", action="block"),
        Finding("harm", 1.0, "error", error=told, stage="output", action="block"),
    )
    reply = Reply(secret, secret, raw={"content": secret})
    calls = (Call("draft", "target", reply), Call("rewrite", "target", reply))
    made = entry(secret, trail=trail, calls=calls, finish=secret, action="block")
    request = ask(secret, Opaque(secret, {"x": secret}), model=secret, user=secret)
    names = [rule.name for rule in tmp_path.iterdir()]
    for name in names:
        (tmp_path / name).unlink()
    with opened(tmp_path / "a.db") as audit:
        audit.offer(Entry(made.visit, 0.5, request, made.answers))
    assert audit.written == 1
    assert secret.encode() not in everything(tmp_path)


def test_the_kind_of_an_error_is_kept(tmp_path: Path) -> None:
    trail = (Finding("harm", 1.0, "error", error="ValueError: kqxzw", action="block"),)
    with opened(tmp_path / "a.db") as audit:
        audit.offer(entry(trail=trail))
    (found,) = rows(tmp_path / "a.db")[0]["trail"]
    assert (found["label"], found["error"]) == ("error", "ValueError")


def test_texts_on_request_are_redacted(tmp_path: Path) -> None:
    rules = ({"pattern": r"\d{4} \d{4}", "replacement": "[card]"}, {"pattern": "(?i)ann"})
    trail = (Finding("harm", 1.0, reason="Ann said", error="for 1234 5678", action="block"),)
    with opened(tmp_path / "a.db", texts=True, redact=rules) as audit:
        audit.offer(entry("ANN has 1234 5678, data:image/png;base64,AAAA", trail=trail))
    (row,) = rows(tmp_path / "a.db")
    kept = "[redacted] has [card], data:image/png;base64,AAAA"
    assert row["detail"]["answer"]["text"] == kept
    assert row["detail"]["calls"][0]["reply"]["text"] == kept
    shown = [{"role": "user", "text": "[redacted] has [card], (a picture)"}]
    assert row["detail"]["request"] == shown
    assert (row["trail"][0]["reason"], row["trail"][0]["error"]) == (
        "[redacted] said",
        "for [card]",
    )
    assert b"1234 5678" not in everything(tmp_path)
    assert len(row["detail"]["answer"]["sha256"]) == 64


@pytest.mark.parametrize("text", ["\ud800 alone", "a\0b", "é" * 9])
@pytest.mark.parametrize("texts", [True, False])
def test_any_text_can_be_kept(text: str, texts: bool, tmp_path: Path) -> None:
    with opened(tmp_path / "a.db", texts=texts) as audit:
        audit.offer(entry(text))
    assert audit.written == 1
    assert rows(tmp_path / "a.db")[0]["detail"]["answer"].get("text", text) == text


@pytest.mark.parametrize("usage", ["x", {"prompt_tokens": 10**30}, {"prompt_tokens": "many"}])
def test_nonsense_of_servers_and_detectors_is_kept_out(usage: Any, tmp_path: Path) -> None:
    """Nothing that an upstream says about tokens can stop the audit."""
    reply = Reply("x", usage=Usage(10**30, 5))
    found = Finding("harm", np.float32(0.5))  # type: ignore[arg-type]  # the point
    made = entry(trail=(found,), calls=(Call("rewrite", "target", reply),))
    with opened(tmp_path / "a.db") as audit:
        audit.offer(Entry(made.visit, 0.5, made.request, made.answers, usage))
    (row,) = rows(tmp_path / "a.db")
    assert (row["prompt"], row["completion"], row["trail"][0]["score"]) == (0, 5, 0.5)


def test_an_entry_that_cannot_be_told_is_lost_alone(tmp_path: Path) -> None:
    odd = Finding("harm", 0.9, categories={"x": object()})  # type: ignore[dict-item]  # the point
    with opened(tmp_path / "a.db") as audit:
        audit.offer(entry(trail=(odd,)))
        until(lambda: audit.waiting == 0)
        for made in (entry(), entry(trail=(odd,)), entry()):
            audit.offer(made)
    assert (audit.written, audit.lost, audit.failing) == (2, 2, False)


# -- what goes wrong --------------------------------------------------------------


def test_a_full_queue_loses_and_counts_and_nobody_waits(tmp_path: Path) -> None:
    gate = threading.Event()

    class Slow(sqlite3.Connection):
        def executemany(self, *asked: Any) -> sqlite3.Cursor:
            gate.wait(10)
            return super().executemany(*asked)

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, factory=Slow)

    with opened(tmp_path / "a.db", connect, limit=10) as audit:
        assert audit.healthy()
        start = time.perf_counter()
        taken = [audit.offer(entry()) for _ in range(13)]
        assert time.perf_counter() - start < 0.5
        assert taken == [True] * 10 + [False] * 3
        assert (audit.waiting, audit.lost, audit.healthy()) == (10, 3, False)
        gate.set()
        until(audit.healthy)
    assert (audit.written, audit.lost) == (10, 3)
    assert len(rows(tmp_path / "a.db")) == 10


def test_pictures_that_wait_are_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmguard.server.audit.BYTES", 3 * entry().weight)
    with opened(tmp_path / "a.db") as audit, audit.changed:
        assert [audit.offer(entry()) for _ in range(5)] == [True] * 3 + [False] * 2
    assert (audit.written, audit.lost, audit.weight) == (3, 2, 0)


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path) -> None:
    """SQLite's own limit of pages fails as a full disk does."""
    path, full = tmp_path / "a.db", [True]

    def connect(path: Path) -> sqlite3.Connection:
        made = store.open_file(path)
        made.execute(f"pragma max_page_count={12 if full[0] else 2**20}")
        return made

    with opened(path, connect) as audit:
        assert audit.healthy()
        start = time.perf_counter()
        for _ in range(200):
            assert audit.offer(entry(choices=2))
        assert time.perf_counter() - start < 0.5
        until(lambda: audit.failing)
        assert not audit.healthy()
        full[0] = False
        until(audit.healthy)
        until(lambda: audit.waiting == 0)
        assert (audit.written, audit.lost) == (400, 0)
    assert len({row["id"] for row in rows(path)}) == 400


def test_what_a_full_disk_never_takes_is_counted(tmp_path: Path) -> None:
    def connect(path: Path) -> sqlite3.Connection:
        made = store.open_file(path)
        made.execute("pragma max_page_count=8")
        return made

    with opened(tmp_path / "a.db", connect) as audit:
        for _ in range(300):
            audit.offer(entry())
    assert audit.lost == 300 - audit.written > 0
    assert len(rows(tmp_path / "a.db")) == audit.written


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sqlite3.connect(path).close()
    path.touch()

    def connect(path: Path) -> sqlite3.Connection:
        uri = f"{path.as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None)

    with opened(path, connect) as audit:
        assert not audit.healthy()
        assert audit.offer(entry())
    assert (audit.written, audit.lost) == (0, 1)


@pytest.mark.parametrize("content", [b"no database, but some other file" * 200, None])
def test_a_file_of_another_kind_is_left_alone(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    if content:
        path.write_bytes(content)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma user_version=99")
    with opened(path) as audit:
        audit.offer(entry())
        assert not audit.healthy()
    assert audit.lost == 1
    assert content is None or path.read_bytes() == content


def test_a_missing_folder_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"audit\.path"):
        Audit(How(path=tmp_path / "none" / "a.db"))


KILLED = """
import sys
from pathlib import Path
from mmguard.server.audit import Audit
from mmguard.server.entry import Entry
from mmguard.server.settings import Audit as How
from mmguard.server.visit import Visit
from mmguard.types import Guarded, Request
audit = Audit(How(path=Path(sys.argv[1])))
answers = dict.fromkeys(range(3), Guarded("x" * 3000, "pass", "answer"))
while True:
    for _ in range(20):
        audit.offer(Entry(Visit(), 0.5, Request(()), answers))
    print(audit.written, flush=True)
"""


def test_a_kill_loses_what_was_in_flight_and_never_half_a_row(tmp_path: Path) -> None:
    path, root = tmp_path / "a.db", Path(__file__).parents[1]
    asked = [sys.executable, "-c", KILLED, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout
        told = 0
        while told < 1500:
            told = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        told = int((child.stdout.read().splitlines() or [str(told)])[-1])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    found = rows(path)
    assert len(found) >= told
    assert len(found) % 3 == 0
    assert all(row["detail"]["answer"]["chars"] == 3000 for row in found)
    with opened(path) as audit:
        audit.offer(entry())
    assert len(rows(path)) == len(found) + 1


def test_many_write_at_once(tmp_path: Path) -> None:
    """Two sidecars with one file, each asked by four threads."""
    path = tmp_path / "a.db"
    with opened(path) as one, opened(path) as other:
        threads = [
            threading.Thread(
                target=lambda a=audit, k=k: [a.offer(entry(name=f"{k}.{i}")) for i in range(100)]
            )
            for k, audit in enumerate((one, other) * 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (one.written, other.written, one.lost + other.lost) == (400, 400, 0)
    names = [row["request"] for row in rows(path)]
    assert sorted(names) == sorted(f"{k}.{i}" for k in range(8) for i in range(100))
    for k in range(8):
        own = [name for name in names if name.startswith(f"{k}.")]
        assert own == [f"{k}.{i}" for i in range(100)]


# -- how long it is kept ----------------------------------------------------------


def test_the_old_goes(tmp_path: Path) -> None:
    path, now = tmp_path / "a.db", time.time()
    with opened(path, texts=True) as audit:
        for age in (40, 31, 29, 0):
            audit.offer(entry(f"kqxzw{age}", begun=now - age * schema.DAY))
    with opened(path, days=30):
        pass
    assert [round((now - row["time"]) / schema.DAY) for row in rows(path)] == [29, 0]
    assert b"kqxzw31" not in everything(tmp_path)
    assert b"kqxzw29" in everything(tmp_path)


def test_the_oldest_goes_when_there_is_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path, texts=True, mib=0.25) as audit:
        for i in range(400):
            audit.offer(entry(f"{i:04d}" + "x" * 2000))
            if i % 100 == 0:
                until(lambda: audit.waiting == 0)
    kept = [row["id"] for row in rows(path)]
    assert audit.written == 400
    assert kept == list(range(kept[0], 401))
    assert 20 < len(kept) < 120
    assert path.stat().st_size <= 2**18
