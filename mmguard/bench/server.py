"""What the sidecar adds to a request: direct and through it, in turns, in one run.

The client is asyncio streams, one open connection a worker: httpx would take longer than what
is measured. Client, upstream and sidecars share the machine's cores, so compare arms of one run.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmguard.bench.host import BANNED
from mmguard.machine import tell_machine

DIRECT = "direct"
POLICIES = ("off", "phrases", "balanced")
PHRASES = {"name": "phrases", "output": [{"detector": "phrases", "action": "block"}], "repair": []}
# KiB of the picture in a body; none in the first.
BODIES = (0, 200, 2048)
CHAT = "/v1/chat/completions"
CLIENT = "asyncio streams, one open connection a worker"


@dataclass(frozen=True, slots=True)
class Plans:
    """What is measured: each cell for so many seconds in each round."""

    policies: tuple[str, ...] = POLICIES
    rounds: int = 3
    seconds: float = 0.5
    bodies: tuple[int, ...] = BODIES
    concurrency: tuple[int, ...] = (1, 8, 32)


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One kind of traffic."""

    body: int
    stream: bool
    workers: int


@dataclass(slots=True)
class Tally:
    """What one arm did on one kind of traffic."""

    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    leaks: int = 0
    failed: int = 0


# -- processes ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A server on loopback, and where and how it wants to be asked."""

    port: int
    pid: int
    path: str = CHAT

    def dress(self, body: bytes) -> bytes:
        """A request's body as this server wants it."""
        return body

    def sound(self, answer: bytes, stream: bool) -> bool:
        """Whether an answer of status 200 came to its end."""
        return answer.endswith(b"]\n\n" if stream else b"}")

    def memory(self) -> float | None:
        """MiB in use, where the system tells it."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        found = next(line for line in lines if line.startswith("VmRSS"))
        return round(int(found.split()[1]) / 1024, 1)

    def cpu(self) -> float:
        """Seconds of processor time used so far, where the system tells them, else 0."""
        try:
            told = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return 0.0
        # After the name, which may hold anything: the 14th field and the 15th.
        user, system = told.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def files(self) -> int | None:
        """Open file descriptors, where the system tells them."""
        try:
            return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        except OSError:
            return None


@contextmanager
def started(*words: str, module: str = "mmguard.bench.host") -> Iterator[Process]:
    """One of a module's processes, which prints its port."""
    command = [sys.executable, "-m", module, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield Process(int(process.stdout.readline()), process.pid)
        finally:
            process.terminate()


def open_arms(stack: ExitStack, policies: Sequence[str]) -> dict[str, Process]:
    """The upstream itself, and a sidecar before it under each policy."""
    upstream = stack.enter_context(started("upstream"))
    return {DIRECT: upstream, **open_sidecars(stack, upstream, policies)}


def open_sidecars(
    stack: ExitStack, upstream: Process, policies: Sequence[str]
) -> dict[str, Process]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / "phrases.yaml").write_text(json.dumps(PHRASES), encoding="utf-8")
    arms, url = {}, f"http://127.0.0.1:{upstream.port}/v1"
    for name in policies:
        policy = str(folder / "phrases.yaml") if name == "phrases" else name
        arms[name] = stack.enter_context(started("sidecar", url, policy))
    return arms


# -- the client -----------------------------------------------------------------


def write_body(size: int, stream: bool, model: str = "mock") -> bytes:
    """A request whose picture of noise has about this many KiB as a file."""
    content: Any = "What does the picture show, and what time of day is it?"
    if size:
        url = f"data:image/png;base64,{base64.b64encode(noise(size)).decode()}"
        part = {"type": "image_url", "image_url": {"url": url}}
        content = [{"type": "text", "text": content}, part]
    message = {"role": "user", "content": content}
    body = {"model": model, "stream": stream, "messages": [message]}
    return json.dumps(body, separators=(",", ":")).encode()


def noise(size: int) -> bytes:
    from PIL import Image as pil

    side = max(1, int((size * 1024 / 3) ** 0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    pil.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class Connection:
    """One connection, a request at a time; opened anew where the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes, path: str = CHAT, method: str = "POST") -> tuple[int, bytes]:
        """Status and body."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        reader, writer = self.streams
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
        writer.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return await read_answer(reader)

    async def answer(self, body: bytes, path: str) -> tuple[int, bytes]:
        """As `ask`; of status 0 where the answer broke off."""
        try:
            return await self.ask(body, path)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self.streams:
            self.streams[1].close()
            self.streams = None


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, sized = int(head.split(b" ", 2)[1]), head.partition(b"content-length:")[2]
    if sized:
        return status, await reader.readexactly(int(sized.partition(b"\r\n")[0]))
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return status, b"".join(pieces)


# -- one run --------------------------------------------------------------------


class Run:
    """All arms over the same traffic, round by round, each time in another order of arms."""

    def __init__(self, plans: Plans, arms: Mapping[str, Process]) -> None:
        self.plans, self.arms = plans, arms
        self.cells = [Cell(*one) for one in product(plans.bodies, (False, True), plans.concurrency)]
        self.bodies = {(b, s): write_body(b, s) for b, s in product(plans.bodies, (False, True))}
        self.start: dict[str, float | None] = {}
        self.clear()

    def clear(self) -> None:
        """Nothing is counted yet."""
        self.tallies = {(cell, arm): Tally() for cell, arm in product(self.cells, self.arms)}

    async def warm(self) -> None:
        """A few requests of each kind for each arm, not counted."""
        for body, arm in product(self.bodies.values(), self.arms):
            place = self.arms[arm]
            connection = Connection(place.port)
            for _ in range(3):
                await connection.answer(place.dress(body), place.path)
            connection.close()
        self.start = {arm: process.memory() for arm, process in self.arms.items()}

    async def play(self, number: int) -> None:
        """One round: every cell in every arm."""
        order = random.Random(number)
        for cell in self.cells:
            for arm in order.sample(list(self.arms), len(self.arms)):
                await self.load(cell, arm)

    async def load(self, cell: Cell, arm: str) -> None:
        tally, spent, begun = self.tallies[cell, arm], self.arms[arm].cpu(), time.perf_counter()
        end = begun + self.plans.seconds
        await asyncio.gather(*(self.work(cell, arm, end) for _ in range(cell.workers)))
        tally.seconds += time.perf_counter() - begun
        tally.cpu += self.arms[arm].cpu() - spent

    async def work(self, cell: Cell, arm: str, end: float) -> None:
        """One worker's requests, the next as soon as the last is answered, one at least."""
        tally, place = self.tallies[cell, arm], self.arms[arm]
        body = place.dress(self.bodies[cell.body, cell.stream])
        connection, going = Connection(place.port), True
        while going:
            begun = time.perf_counter()
            status, answer = await connection.answer(body, place.path)
            tally.times.append(time.perf_counter() - begun)
            tally.failed += status != 200 or not place.sound(answer, cell.stream)
            going = time.perf_counter() < end
        connection.close()

    async def leak(self, requests: int = 20) -> dict[str, dict[str, int]]:
        """How many answers to requests that bring out harm hold what is banned, by arm."""
        found = {}
        for arm, process in self.arms.items():
            leaks, connection = 0, Connection(process.port)
            for i in range(requests):
                _, answer = await connection.ask(write_body(0, bool(i % 2), "harm"))
                leaks += BANNED in spoken(answer)
            connection.close()
            found[arm] = {"asked": requests, "leaked": leaks}
        return found


def spoken(answer: bytes) -> str:
    """All that an answer says, a stream's deltas put together."""
    text = answer.decode(errors="replace")
    frames = [line.removeprefix("data: ") for line in text.splitlines() if line != "data: [DONE]"]
    pieces = []
    for frame in filter(None, frames):
        for choice in json.loads(frame).get("choices", []):
            told = choice.get("message") or choice.get("delta") or {}
            pieces.append(str(told.get("content") or ""))
    return "".join(pieces)


async def bench_server(plans: Plans) -> dict[str, Any]:
    """The report, ready for JSON."""
    with ExitStack() as stack:
        run = Run(plans, open_arms(stack, plans.policies))
        await run.warm()
        for number in range(plans.rounds):
            await run.play(number)
        memory = {
            arm: {"warm_mib": run.start[arm], "end_mib": process.memory()}
            for arm, process in run.arms.items()
        }
        return {
            "plans": asdict(plans),
            "client": CLIENT,
            "cells": [tell_cell(run, cell, arm) for cell in run.cells for arm in run.arms],
            "leaks": await run.leak(),
            "memory": memory,
            "machine": tell_machine(),
        }


def tell_cell(run: Run, cell: Cell, arm: str) -> dict[str, Any]:
    """Milliseconds at three quantiles, those added to the same run's direct ones, and the rate."""
    ours, base = run.tallies[cell, arm], run.tallies[cell, DIRECT]
    found, direct = quantiles(ours.times), quantiles(base.times)
    rate, most = (len(one.times) / one.seconds for one in (ours, base))
    return {
        **asdict(cell),
        "arm": arm,
        "requests": len(ours.times),
        "failed": ours.failed,
        **found,
        **{f"added_{name}": round(found[name] - direct[name], 3) for name in found},
        "cpu_ms": round(ours.cpu / len(ours.times) * 1e3, 3),
        "per_s": round(rate, 1),
        "rate_ratio": round(rate / most, 4),
    }


def quantiles(times: Sequence[float]) -> dict[str, float]:
    found = np.quantile(np.array(times) * 1e3, (0.5, 0.95, 0.99))
    return {f"p{q}_ms": round(float(ms), 3) for q, ms in zip((50, 95, 99), found, strict=True)}
