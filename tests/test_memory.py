"""Memory goes back after large bodies, when nothing is under way."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmguard.server import memory
from tests.upstream import app, completion, write_policy


class Trimmed:
    def __init__(self) -> None:
        self.calls = 0
        self.done = threading.Event()

    def __call__(self, pad: int) -> int:
        self.calls += 1
        self.done.set()
        return 1


def play(folder: Path, pads: list[int], gate: asyncio.Event, trim: Trimmed) -> None:
    """Requests with so many bytes more, at once; then a pause."""

    async def upstream(request: httpx.Request) -> httpx.Response:
        await gate.wait()
        return httpx.Response(200, content=json.dumps(completion({"content": "fine"})))

    sidecar = app(upstream, write_policy(folder))
    sidecar.state.sidecar.memory.trim = trim

    async def run() -> None:
        transport = httpx.ASGITransport(sidecar)
        async with httpx.AsyncClient(transport=transport, base_url="http://side/v1") as caller:
            said: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            bodies = [{**said, "pad": "x" * pad} for pad in pads]
            posts = [caller.post("chat/completions", json=body) for body in bodies]
            calls = [asyncio.ensure_future(post) for post in posts]
            await asyncio.sleep(0.1)
            assert trim.calls == 0
            gate.set()
            assert {(await call).status_code for call in calls} == {200}
        await asyncio.sleep(0.1)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PAUSE", 0.01)


def test_once_after_large_bodies(tmp_path: Path) -> None:
    trim = Trimmed()
    play(tmp_path, [2**20, 2**20, 10], asyncio.Event(), trim)
    assert trim.done.wait(5)
    assert trim.calls == 1


def test_never_after_small_ones(tmp_path: Path) -> None:
    trim = Trimmed()
    play(tmp_path, [10, 2**18], asyncio.Event(), trim)
    assert trim.calls == 0


def test_it_is_there_where_glibc_is() -> None:
    found = memory.find_trim()
    if found is None:
        pytest.skip("no malloc_trim here")
    assert found(0) in (0, 1)
