"""The audit: a row for every decided choice, written behind the requests' back.

Requests only put entries into a bounded queue; one thread writes them, many in a commit. What
the store does not take is tried again; what the queue does not take is lost, and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from itertools import islice

from mmguard.server.entry import Entry
from mmguard.server.schema import Row, Store
from mmguard.server.settings import Audit as Settings
from mmguard.server.store import File

log = logging.getLogger("mmguard.server")
ROWS, BYTES = 8192, 256 * 2**20
BATCH = 512
# Seconds: how long a commit waits for company, and a failed one for the next try; from when on
# one that has not come back counts as failing.
LINGER, AGAIN, TRIM, STUCK = 0.05, 0.5, 60.0, 10.0


def open_store(settings: Settings) -> Store:
    """The file or the database that is named. Raises `InputError` for what cannot be either."""
    if settings.path:
        return File(settings.path)
    from mmguard.server.postgres import Postgres

    return Postgres(settings.url or "")


class Audit:
    """A queue and its writer. `written`, `lost` and `waiting` count rows.

    Raises `InputError` if the file's folder is not there, or the database's URL is none. Any
    other trouble with the store is told by `healthy`, and does not keep a sidecar from starting.
    """

    def __init__(self, settings: Settings, store: Store | None = None, limit: int = ROWS) -> None:
        self.settings, self.store, self.limit = settings, store or open_store(settings), limit
        self.written = self.lost = self.waiting = self.weight = 0
        self.failing = self.closing = False
        self.trimmed, self.size = 0.0, 0
        self.begun: float | None = None
        self.queue: deque[Entry] = deque()
        self.changed, self.tried = threading.Condition(), threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True, name="mmguard-audit")
        self.thread.start()
        self.tried.wait(5)

    # -- before the request's eyes: never waits for the store --------------------

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
        """Whether the store takes what it is given, and the queue has room for those in flight."""
        begun, room = self.begun, self.waiting <= self.limit // 2 and self.weight <= BYTES // 2
        stuck = begun is not None and time.monotonic() - begun > STUCK
        return room and not stuck and not self.failing and self.thread.is_alive()

    def close(self, seconds: float = 30) -> None:
        """Write all that was accepted. What is not taken by then is lost, and counted."""
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
        self.store.close()

    def rest(self) -> None:
        """Until there is something to do, and a moment longer, for company."""
        with self.changed:
            if self.failing:
                self.changed.wait_for(lambda: self.closing, AGAIN)
                return
            self.changed.wait_for(lambda: self.closing or self.queue, TRIM)
            self.changed.wait_for(lambda: self.closing or self.waiting >= BATCH, LINGER)

    def attempt(self) -> None:
        """One commit. What it did not take stays in the queue, and is tried again as it was."""
        with self.changed:
            self.size = self.size or min(len(self.queue), BATCH)
            entries = list(islice(self.queue, self.size))
        self.begun = time.monotonic()
        try:
            self.write(entries)
            self.failing = False
        except Exception as exc:
            if not self.failing:
                log.error("the audit cannot be written: %s: %s", type(exc).__name__, exc)
            self.failing = True
            self.store.close()
        self.begun = None

    def write(self, entries: list[Entry]) -> None:
        rows = [row for entry in entries for row in self.render(entry)]
        if rows:
            self.store.append(rows)
        self.settle(entries, len(rows))
        self.trim()

    def render(self, entry: Entry) -> list[Row]:
        """An entry's rows. What cannot be told is lost alone, and holds up nothing."""
        try:
            how = self.settings
            return entry.rows(how.texts, how.redact, how.pictures)
        except Exception as exc:
            log.error("an audit entry cannot be told: %s", type(exc).__name__)
            return []

    def settle(self, entries: list[Entry], rows: int) -> None:
        """These are written: the queue is rid of them."""
        with self.changed:
            self.size = 0
            for entry in entries:
                self.queue.popleft()
                self.weight -= entry.weight
            expected = sum(len(entry.answers) for entry in entries)
            self.waiting -= expected
            self.written += rows
            self.lost += expected - rows

    def trim(self) -> None:
        due = time.monotonic() - self.trimmed > TRIM or not self.trimmed
        if due:
            self.trimmed = time.monotonic()
        self.store.trim(self.settings.days, self.settings.mib, due)
