"""A sidecar that is told to stop, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from mmguard.server import store
from tests.faulty import Peer, Upstream, faulty
from tests.test_faults import Caller, asks, soon
from tests.upstream import completion, streamed

POLICY = {"output": [{"detector": "phrases", "action": "block"}], "repair": []}
FINE = json.dumps(completion({"content": "all is fine"})).encode()
EVENTS = streamed([{"content": "all "}, {"content": "is "}, {"content": "fine"}])


class Held:
    """An upstream that answers when it may."""

    def __init__(self) -> None:
        self.go = threading.Event()

    async def __call__(self, peer: Peer) -> None:
        await asyncio.to_thread(self.go.wait)
        if not peer.body.get("stream"):
            return await peer.answer(FINE)
        await peer.head()
        await peer.piece(EVENTS)
        await peer.end()
        return None


@contextmanager
def sidecar(folder: Path, upstream: Upstream, **more: Any) -> Iterator[tuple[Any, str]]:
    """The process and its URL."""
    (folder / "policy.yaml").write_text(json.dumps(POLICY))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"upstream": upstream.url, "policy": str(folder / "policy.yaml"), "port": port}
    (folder / "side.yaml").write_text(json.dumps({**settings, **more}))
    command = [sys.executable, "-m", "mmguard", "serve", "--config", str(folder / "side.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert soon(lambda: listens(port), 30)
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def whole(caller: Caller) -> bytes:
    caller.socket.settimeout(20)
    return b"".join(iter(lambda: caller.socket.recv(65536), b""))


def test_answers_under_way_end_and_are_recorded_and_no_new_ones_begin(tmp_path: Path) -> None:
    held, audit = Held(), tmp_path / "audit.db"
    with (
        faulty(held) as upstream,
        sidecar(tmp_path, upstream, audit=str(audit)) as (process, url),
    ):
        port = int(url.split(":")[2].split("/")[0])
        callers = [Caller(url, asks("any", stream=stream)) for stream in (False, True)]
        assert soon(lambda: len(upstream.peers) == 2)
        process.send_signal(signal.SIGTERM)
        assert soon(lambda: refuses(port))
        assert process.poll() is None
        held.go.set()
        answers = [whole(caller) for caller in callers]
        assert [b" 200 " in answer.split(b"\r\n")[0] for answer in answers] == [True, True]
        assert b"all is fine" in answers[0]
        assert b"data: [DONE]" in answers[1]
        assert process.wait(20) in (0, -signal.SIGTERM)
        for caller in callers:
            caller.leave()
    assert [row["action"] for row in store.read(audit)] == ["pass", "pass"]


def test_nobody_waits_for_ever_for_the_last_answer(tmp_path: Path) -> None:
    held, settings = Held(), {"drain_timeout": 1}
    with faulty(held) as upstream, sidecar(tmp_path, upstream, **settings) as (process, url):
        caller = Caller(url, asks("any"))
        assert soon(lambda: len(upstream.peers) == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM)
        caller.leave()
        held.go.set()
