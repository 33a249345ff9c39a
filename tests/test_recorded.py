"""What a running sidecar records, its settings, and the command that lists it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from mmguard.cli import app as commands
from mmguard.cli.audit import moment
from mmguard.errors import InputError
from mmguard.server.settings import Audit as How, Settings, load_settings
from tests.test_audit import ASK, entry, opened, rows, until
from tests.upstream import app, completion, write_policy
from tests.world import BAD

# -- the sidecar ------------------------------------------------------------------


def fine(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=json.dumps(completion({"content": "fine"})))


def status(sidecar: Any, *paths: str) -> list[int]:
    async def call() -> list[int]:
        transport = httpx.ASGITransport(sidecar)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            asked = [await caller.post(path, json=ASK) for path in paths]
            return [answer.status_code for answer in asked]

    return asyncio.run(call())


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("fail_closed", [True, False])
def test_an_audit_that_fails_closes_the_sidecar_only_if_told(
    fail_closed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    path.mkdir()
    how = {"path": path, "fail_closed": fail_closed}
    sidecar = app(fine, write_policy(tmp_path), audit=how)
    watch = sidecar.state.sidecar.watch
    assert status(sidecar, CHAT) == [503 if fail_closed else 200]
    path.rmdir()
    until(watch.audit.healthy)
    assert status(sidecar, CHAT) == [200]
    watch.close()
    assert len(rows(path)) == (1 if fail_closed else 2)


def test_a_stopping_sidecar_writes_all(tmp_path: Path) -> None:
    sidecar = app(fine, write_policy(tmp_path), audit=str(tmp_path / "a.db"))

    async def run() -> None:
        async with sidecar.router.lifespan_context(sidecar):
            transport = httpx.ASGITransport(sidecar)
            async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
                await asyncio.gather(*(caller.post(CHAT, json=ASK) for _ in range(20)))

    asyncio.run(run())
    assert len(rows(tmp_path / "a.db")) == 20
    assert not sidecar.state.sidecar.watch.audit.thread.is_alive()


def test_the_key_and_every_choice_are_told(tmp_path: Path) -> None:
    def two(request: httpx.Request) -> httpx.Response:
        body = completion({"content": "fine"}, {"content": BAD})
        return httpx.Response(200, content=json.dumps(body))

    keys = {"team": {"key": "team-key-1"}}
    path = tmp_path / "a.db"
    sidecar = app(two, write_policy(tmp_path), audit=str(path), keys=keys)

    async def call() -> None:
        transport = httpx.ASGITransport(sidecar)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            told = {"authorization": "Bearer team-key-1", "x-request-id": "mine-7"}
            await caller.post(CHAT, json={**ASK, "n": 2}, headers=told)
            await caller.post(CHAT, json=ASK)

    asyncio.run(call())
    sidecar.state.sidecar.watch.close()
    first, second = rows(path)
    assert [first["action"], second["action"]] == ["pass", "block"]
    assert {row["request"] for row in (first, second)} == {"mine-7"}
    assert (first["key"], first["route"], first["prompt"]) == ("team", CHAT, 7)
    assert b"team-key-1" not in path.read_bytes()


# -- settings and the command -----------------------------------------------------


def test_settings(tmp_path: Path) -> None:
    known = load_settings(None, {"upstream": "http://up"}, {"MMGUARD_AUDIT": "a.db"})
    assert known.audit == How(path=Path("a.db"))
    assert Settings(upstream="http://up").audit.path is None
    with pytest.raises(ValidationError, match="regular expression"):
        How(redact=({"pattern": "("},))  # type: ignore[arg-type]  # pydantic reads it
    with pytest.raises(ValidationError, match="regular expression"):
        How(redact=({"pattern": "a", "replacement": r"\9"},))  # type: ignore[arg-type]  # the same


def told(capsys: pytest.CaptureFixture[str], *asked: str) -> str:
    commands(["audit", *asked], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, now = str(tmp_path / "a.db"), time.time()
    with opened(Path(path)) as audit:
        for age, action in ((7200, "block"), (60, "pass"), (30, "block"), (1, "pass")):
            audit.offer(entry(action=action, begun=now - age))
    assert told(capsys, path).startswith("4 decisions")
    blocked = told(capsys, path, "--action", "block", "--json").splitlines()
    assert [json.loads(line)["id"] for line in blocked] == [1, 3]
    assert json.loads(blocked[0])["time"].endswith("+00:00")
    assert [
        json.loads(x)["id"] for x in told(capsys, path, "--last", "1", "--json").splitlines()
    ] == [4]
    recent = told(capsys, path, "--since", "1h", "--json").splitlines()
    assert [json.loads(line)["id"] for line in recent] == [2, 3, 4]


def test_moments() -> None:
    assert moment("") == 0
    assert moment("2026-01-31") == moment("2026-01-31T01:00+01:00") == 1769817600
    assert abs(moment("2d") - time.time() + 2 * 86400) < 5
    with pytest.raises(InputError, match="--since"):
        moment("yesterday")


@pytest.mark.parametrize("content", [b"", b"x" * 4096, None])
def test_a_file_that_is_no_audit_is_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.db"):
        rows(path)
