"""The audit: a row for every decided choice, written behind the requests' back.

Requests only put entries into a bounded queue; one thread writes them, many in a commit. What
the file does not take is tried again; what the queue does not take is lost, and counted.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from itertools import islice

from mmguard.errors import InputError
from mmguard.server import store
from mmguard.server.entry import Entry
from mmguard.server.settings import Audit as Settings

log = logging.getLogger("mmguard.server")
ROWS, BYTES = 8192, 256 * 2**20
BATCH = 512
# Seconds: how long a commit waits for company, and a failed one for the next try.
LINGER, AGAIN, TRIM = 0.05, 0.5, 60.0


class Audit:
    """A queue and its writer. `written`, `lost` and `waiting` count rows.

    Raises `InputError` if the file's folder is not there. Any other trouble with the file is
    told by `healthy`, and does not keep a sidecar from starting.
    """

    def __init__(
        self, settings: Settings, connect: store.Connect = store.open_file, limit: int = ROWS
    ) -> None:
        if settings.path is None or not settings.path.parent.is_dir():
            raise InputError(f"audit.path: {settings.path} is in no folder; make it first")
        self.settings, self.path, self.connect, self.limit = settings, settings.path, connect, limit
        self.written = self.lost = self.waiting = self.weight = 0
        self.failing = self.closing = False
        self.trimmed = 0.0
        self.connection: sqlite3.Connection | None = None
        self.queue: deque[Entry] = deque()
        self.changed, self.tried = threading.Condition(), threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True, name="mmguard-audit")
        self.thread.start()
        self.tried.wait(5)

    # -- before the request's eyes: never waits for the file ---------------------

    def offer(self, entry: Entry) -> bool:
        """Whether the entry will be written."""
        rows, weight = len(entry.answers), entry.weight
        with self.changed:
            full = self.waiting + rows > self.limit or self.weight + weight > BYTES
            if full or self.closing:
                self.lost += rows
                return False
            self.queue.append(entry)
            self.waiting += rows
            self.weight += weight
            self.changed.notify()
        return True

    def healthy(self) -> bool:
        """Whether the file takes what it is given, and the queue has room for those in flight."""
        room = self.waiting <= self.limit // 2 and self.weight <= BYTES // 2
        return room and not self.failing and self.thread.is_alive()

    def close(self, seconds: float = 30) -> None:
        """Write all that was accepted. What the file will not take by then is lost, and counted."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(seconds)
        with self.changed:
            if self.waiting:
                log.error("the audit lost its last %d rows", self.waiting)
            self.lost += self.waiting
            self.waiting = 0

    # -- behind it ---------------------------------------------------------------

    def run(self) -> None:
        """Until closed and empty, or closed and failing."""
        self.attempt()
        self.tried.set()
        while not (self.closing and (self.failing or not self.queue)):
            self.rest()
            self.attempt()
        if self.connection:
            self.connection.close()

    def rest(self) -> None:
        """Until there is something to do, and a moment longer, for company."""
        with self.changed:
            if self.failing:
                self.changed.wait_for(lambda: self.closing, AGAIN)
                return
            self.changed.wait_for(lambda: self.closing or self.queue, TRIM)
            self.changed.wait_for(lambda: self.closing or self.waiting >= BATCH, LINGER)

    def attempt(self) -> None:
        """One commit; what it did not take stays in the queue."""
        with self.changed:
            entries = list(islice(self.queue, BATCH))
        try:
            self.write(entries)
            self.failing = False
        except Exception as exc:
            if not self.failing:
                log.error("the audit cannot be written: %s: %s", type(exc).__name__, exc)
            self.failing = True
            self.drop()

    def write(self, entries: list[Entry]) -> None:
        if self.connection is None:
            self.connection = self.connect(self.path)
            store.prepare(self.connection)
        rows = [row for entry in entries for row in self.render(entry)]
        if rows:
            store.append(self.connection, rows)
        self.settle(entries, len(rows))
        self.trim(self.connection)

    def render(self, entry: Entry) -> list[store.Row]:
        """An entry's rows. What cannot be told is lost alone, and holds up nothing."""
        try:
            return entry.rows(self.settings.texts, self.settings.redact)
        except Exception as exc:
            log.error("an audit entry cannot be told: %s", type(exc).__name__)
            return []

    def settle(self, entries: list[Entry], rows: int) -> None:
        """These are written: the queue is rid of them."""
        with self.changed:
            for entry in entries:
                self.queue.popleft()
                self.weight -= entry.weight
            expected = sum(len(entry.answers) for entry in entries)
            self.waiting -= expected
            self.written += rows
            self.lost += expected - rows

    def trim(self, connection: sqlite3.Connection) -> None:
        """Age is looked at each minute, size at each commit."""
        if time.monotonic() - self.trimmed > TRIM or not self.trimmed:
            self.trimmed = time.monotonic()
            store.expire(connection, self.settings.days)
        store.shrink(connection, self.settings.mib)

    def drop(self) -> None:
        """Begin anew with the file."""
        if self.connection:
            try:
                self.connection.close()
            except sqlite3.Error:
                log.debug("closing failed too")
        self.connection = None
