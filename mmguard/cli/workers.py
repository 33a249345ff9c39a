"""`mmguard serve --workers`: several processes behind one address, and one that looks after them.

Each worker is a whole sidecar with its own detectors, connections and limits. SIGHUP and
SIGTERM go on to all; a worker that dies is replaced; workers end with their parent.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from mmguard.cli.console import err
from mmguard.errors import InputError, MmguardError
from mmguard.policy import load_policy

if TYPE_CHECKING:
    from mmguard.server.settings import Settings

# Where prometheus_client's processes put their counts together.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
# Seconds between looks, and before a worker that did not come up is tried again.
LOOK, AGAIN = 0.1, 5.0
SPAWN = get_context("spawn")


def supervise(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises `MmguardError` where the first workers do not come up."""
    for name in settings.policies:
        load_policy(name)
    with listening(settings) as place, counted():
        crew = Crew(settings, place)
        try:
            crew.run()
        finally:
            crew.stop()


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The address, bound once for all workers."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named TCP, or else asyncio leaves Nagle's delay on.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((settings.host, settings.port))
        except OSError as exc:
            raise InputError(f"{settings.host}:{settings.port} cannot be had: {exc}") from exc
        yield place


@contextmanager
def counted() -> Iterator[None]:
    """A folder in which the workers' metrics add up, if the operator has named none."""
    if SHARED in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mmguard-metrics-") as folder:
        os.environ[SHARED] = folder
        try:
            yield
        finally:
            del os.environ[SHARED]


class Worker:
    """One process; `life` tells when it is up, and tells it when nobody looks after it."""

    def __init__(self, settings: Settings, place: socket.socket) -> None:
        self.life, theirs = SPAWN.Pipe()
        self.up, self.begun = False, time.monotonic()
        self.process = SPAWN.Process(target=work, args=(settings, place, theirs))
        self.process.start()
        theirs.close()

    def look(self) -> bool:
        """Whether it lives; `up` once it has said so."""
        with suppress(EOFError, OSError):
            self.up = self.up or (self.life.poll() and bool(self.life.recv()))
        return self.process.is_alive()

    def tell(self, sign: int) -> None:
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, sign)


class Crew:
    """The workers of one address."""

    def __init__(self, settings: Settings, place: socket.socket) -> None:
        self.settings, self.place = settings, place
        self.over = False
        signal.signal(signal.SIGTERM, self.end)
        signal.signal(signal.SIGINT, self.end)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self.reload)
        self.workers = [Worker(settings, place) for _ in range(settings.workers)]

    def end(self, sign: int, frame: Any) -> None:
        self.over = True

    def reload(self, sign: int, frame: Any) -> None:
        for worker in self.workers:
            worker.tell(sign)

    def run(self) -> None:
        proven = False
        while not self.over:
            time.sleep(LOOK)
            for i, worker in enumerate(self.workers):
                if worker.look():
                    continue
                if not worker.up and not proven:
                    raise MmguardError("a worker did not come up: what it said stands above")
                if worker.up or time.monotonic() - worker.begun > AGAIN:
                    err.print(f"worker {worker.process.pid} died: another takes its place")
                    self.workers[i] = Worker(self.settings, self.place)
            proven = proven or all(worker.up for worker in self.workers)

    def stop(self) -> None:
        """What is under way ends first, in the time that it has."""
        until = time.monotonic() + self.settings.drain_timeout + AGAIN
        for worker in self.workers:
            worker.tell(signal.SIGTERM)
        for worker in self.workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


# -- in a worker ----------------------------------------------------------------


def work(settings: Settings, place: socket.socket, life: Connection) -> None:
    """One sidecar at the address that its parent has bound."""
    from mmguard.cli.serve import open_app, open_server

    if hasattr(signal, "SIGHUP"):
        # Until there are policies to read again: these are being read now.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = open_server(settings, open_app(settings))
    except MmguardError as exc:
        err.print(f"error: {exc}", soft_wrap=True, markup=False)
        raise SystemExit(2) from exc
    with suppress(BrokenPipeError):
        life.send(True)
    threading.Thread(target=follow, args=(life,), daemon=True).start()
    server.run(sockets=[place])


def follow(life: Connection) -> None:
    """Ends this process, in order, with its parent."""
    try:
        life.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
