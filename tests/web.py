"""Web servers on loopback that answer byte by byte, also with what no honest server sends."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[str], Iterable[bytes]]


@dataclass
class Site:
    """A running server: what it was asked, as whole heads, and when to give up."""

    answer: Answer
    tls: ssl.SSLContext | None = None
    heads: list[str] = field(default_factory=list)
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def drip(self, piece: bytes, seconds: float) -> Iterator[bytes]:
        """The piece again and again, with waits, until the test is over."""
        while not self.over.wait(seconds):
            yield piece


class Visit(socketserver.StreamRequestHandler):
    site: Site

    def setup(self) -> None:
        if self.site.tls:
            self.request = self.site.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        head = "".join(line.decode() for line in iter(self.rfile.readline, b"\r\n") if line)
        self.site.heads.append(head)
        for piece in self.site.answer(head.split(" ")[1]):
            self.wfile.write(piece)

    def finish(self) -> None:
        super().finish()
        self.request.close()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up, or does not trust us, may."""
        with contextlib.suppress(OSError):
            super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            super().shutdown_request(request)


def head(status: int = 200, **fields: object) -> bytes:
    """The head of an answer; `content_length=5` is a field."""
    lines = [f"HTTP/1.1 {status} X", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def whole(data: bytes, **fields: Any) -> Iterator[bytes]:
    yield head(content_length=len(data), **fields) + data


@contextmanager
def serve(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site(answer, tls)
    server = Server(("127.0.0.1", 0), type("Visit", (Visit,), {"site": site}))
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
