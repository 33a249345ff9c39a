"""A private PostgreSQL server in a folder of its own, reached by a socket there."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER, SECRET = "guest", "kq/xz:w@7%"
SPELLED = "kq%2Fxz%3Aw%407%25"
RULES = "local all guest scram-sha-256\nlocal all all trust\n"
PLACES = (None, *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))))


def missing() -> str:
    """Why no server can be had here, or nothing."""
    try:
        import psycopg  # noqa: F401  # whether it is there
    except ImportError:
        return "psycopg is not installed"
    if not all(map(program, ("initdb", "postgres"))):
        return "PostgreSQL's initdb and postgres are not installed"
    if os.geteuid() == 0 and not other():
        return "PostgreSQL will not run as root, and there is no user postgres or nobody"
    return ""


def program(name: str) -> str:
    """Its path, or nothing."""
    return next((found for place in PLACES if (found := shutil.which(name, path=place))), "")


def other() -> dict[str, Any]:
    """Whom a child runs as: never root."""
    users = {user.pw_name: user for user in pwd.getpwall()}
    found = users.get("postgres") or users.get("nobody")
    if os.geteuid() or not found:
        return {}
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


class Server:
    """A server that tests may stop and start."""

    child: subprocess.Popen[bytes] | None

    def __init__(self, folder: Path) -> None:
        self.folder, self.child = folder, None
        self.asked: dict[str, Any] = {**other(), "cwd": folder, "stdout": subprocess.DEVNULL}
        made = [program("initdb"), "-D", "data", "-U", "owner", "-A", "trust", "-E", "UTF8"]
        subprocess.run([*made, "--locale=C", "--no-sync"], check=True, **self.asked)
        (folder / "data/pg_hba.conf").write_text(RULES)
        self.start()
        with self.connect() as connection:
            connection.execute(f"create role {USER} login password '{SECRET}'")

    def start(self) -> None:
        told = [program("postgres"), "-D", "data", "-F", "-h", "", "-k", str(self.folder)]
        self.child = subprocess.Popen(told, stderr=subprocess.DEVNULL, **self.asked)
        end = time.monotonic() + 20
        while not self.ready():
            assert time.monotonic() < end
            time.sleep(0.02)

    def ready(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """As if its machine had lost power, but for what is on the disk."""
        if self.child:
            self.child.send_signal(signal.SIGQUIT)
            self.child.wait(20)
        self.child = None

    def connect(self, **more: Any) -> Any:
        import psycopg

        known = {"host": str(self.folder), "user": "owner", "dbname": "postgres", **more}
        return psycopg.connect(**known, autocommit=True)

    def schema(self, name: str) -> str:
        """The URL of an empty schema."""
        with self.connect() as connection:
            connection.execute(f"create schema {name}")
        options = f"host={self.folder}&options=-csearch_path%3D{name}"
        return f"postgresql://owner@/postgres?{options}"


@contextmanager
def served() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="mmguard-"))
    owner = other()
    if owner:
        os.chown(folder, owner["user"], owner["group"])
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
