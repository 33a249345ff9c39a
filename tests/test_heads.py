"""Requests whose heads do not come."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from mmguard.server.heads import heads_within
from tests.loopback import served
from tests.upstream import app, write_policy

HEAD = b"GET /healthz HTTP/1.1\r\nhost: side\r\n\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    policy = write_policy(tmp_path_factory.mktemp("policy"))
    sidecar = app(lambda request: httpx.Response(200), policy)
    with served(sidecar, http=heads_within(0.4)) as url:
        yield int(url.split(":")[2].split("/")[0])


def hangs_up(connection: socket.socket) -> float:
    """Seconds until the other side does."""
    start = time.monotonic()
    connection.settimeout(10)
    assert connection.recv(65536) == b""
    return time.monotonic() - start


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", HEAD[:-2]])
@pytest.mark.parametrize("before", [0, 1], ids=["first", "second"])
def test_who_sends_no_head_is_hung_up_on(sent: bytes, before: int, port: int) -> None:
    if before and not sent:
        return
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(before):
            ask(connection)
        connection.sendall(sent)
        assert 0.2 < hangs_up(connection) < 3


def ask(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    answer = b""
    while b'"ok"' not in answer:
        answer += connection.recv(65536)


def test_a_head_in_pieces_is_heard_and_a_connection_lives_on(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(3):
            connection.sendall(HEAD[:10])
            time.sleep(0.25)
            connection.sendall(HEAD[10:])
            answer = b""
            while b'"ok"' not in answer:
                answer += connection.recv(65536)
