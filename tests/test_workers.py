"""Several processes behind one address."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mmguard.server import store
from tests.faulty import faulty
from tests.test_drain import FINE, POLICY, sidecar
from tests.test_faults import soon
from tests.test_metrics import read

ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
WORKERS = 2


def metrics(url: str) -> str:
    return httpx.get(f"{url[:-3]}/metrics", verify=False).text


def processes(url: str) -> set[str]:
    """Those that answered one of many."""
    found = (re.search(r'mmguard_in_flight\{worker="(\d+)"\}', metrics(url)) for _ in range(12))
    return {match[1] for match in found if match}


def tags(url: str) -> set[str]:
    """What the policies of those are called that answered one of many."""
    answers = [httpx.get(f"{url[:-3]}/readyz", verify=False).json()["policies"] for _ in range(12)]
    return {tag for answer in answers for tag in answer}


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_they_count_record_reload_and_stop_as_one(tmp_path: Path) -> None:
    audit, path = tmp_path / "audit.db", tmp_path / "policy.yaml"
    with (
        faulty(lambda peer: peer.answer(FINE)) as upstream,
        sidecar(tmp_path, upstream, audit=str(audit), workers=WORKERS) as (process, url),
    ):
        assert soon(lambda: len(processes(url)) == WORKERS)

        def ask(number: int) -> int:
            answer = httpx.post(f"{url}/chat/completions", json=ASK, timeout=30, verify=False)
            return answer.status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(60))) == {200}
        # Whichever answers, it tells the counts of all.
        counts = {tuple(read(metrics(url), "requests_total").values()) for _ in range(10)}
        assert counts == {(60.0,)}
        old = tags(url)
        path.write_text(json.dumps({**POLICY, "description": "new"}))
        process.send_signal(signal.SIGHUP)
        assert soon(lambda: not tags(url) & old)
        new = tags(url)
        path.write_text("output: nonsense\n")
        process.send_signal(signal.SIGHUP)
        assert ask(0) == 200
        assert tags(url) == new
        path.write_text(json.dumps(POLICY))
        # One that dies has a successor.
        dead = min(processes(url))
        os.kill(int(dead), signal.SIGKILL)
        assert soon(lambda: len(processes(url) - {dead}) == WORKERS)
        left = processes(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not [pid for pid in left if lives(pid)]
    assert len(list(store.read(audit))) == 61


def lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"policy": "no-such-policy"}, "unknown policy 'no-such-policy'"),
        ({"policy": "off", "audit": "/no/such/folder/audit.db"}, "is in no folder"),
    ],
)
def test_what_is_wrong_is_told_once_and_ends_all(
    settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "side.yaml"
    known = {"upstream": "http://127.0.0.1:9/v1", "port": port, "workers": WORKERS}
    path.write_text(json.dumps({**known, **settings}))
    command = [sys.executable, "-m", "mmguard", "serve", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
