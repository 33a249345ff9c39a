"""Whether a sidecar keeps what it should give back: many requests, faults among them.

What it holds is read three times, when nothing is in flight: after a tenth of the requests
or of the time, halfway, and at the end.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mmguard.bench.host import BANNED, FAULTS
from mmguard.bench.server import DIRECT, Connection, Process, open_arms, spoken, write_body
from mmguard.machine import tell_machine

# What is asked for, and how often: answers, harm, faults behind, faults before.
FAULTY = tuple(name.decode() for name in FAULTS)
KINDS = {"mock": 40, "harm": 20, "leave": 15, "nonsense": 5, **dict.fromkeys(FAULTY, 4)}


class Soak:
    """One sidecar under mixed traffic."""

    def __init__(self, process: Process, seed: int = 0) -> None:
        self.process, self.random = process, random.Random(seed)
        self.answers, self.leaked, self.left = Counter[str](), 0, 0
        self.end = math.inf
        self.bodies = {
            (kind, stream): write_body(size, stream, kind)
            for kind in KINDS
            for stream in (False, True)
            for size in (20 if kind == "mock" else 0,)
        }

    async def play(self, requests: int, workers: int, seconds: float) -> dict[str, Any]:
        """So many requests, or as many as the time allows, and what the sidecar holds then."""
        self.left, self.end = requests, time.monotonic() + seconds
        await asyncio.gather(*(self.work() for _ in range(workers)))
        return await self.held()

    async def work(self) -> None:
        connection = Connection(self.process.port)
        while self.left > 0 and time.monotonic() < self.end:
            self.left -= 1
            kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
            self.answers[await self.ask(connection, kind)] += 1
        connection.close()

    async def ask(self, connection: Connection, kind: str) -> str:
        """One request, and how it ended."""
        body = self.bodies[kind, self.random.random() < 0.5]
        try:
            async with asyncio.timeout(self.random.random() / 50 if kind == "leave" else 60):
                status, answer = await connection.ask(body[:-1] if kind == "nonsense" else body)
        except TimeoutError:
            connection.close()
            return "left" if kind == "leave" else "late"
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
            return "broken off"
        self.leaked += BANNED.encode() in answer or (status == 200 and BANNED in spoken(answer))
        return str(status)

    async def held(self) -> dict[str, Any]:
        """What is left once nothing is in flight any more."""
        await asyncio.sleep(4)
        connection = Connection(self.process.port)
        # Idle connections are closed when the next call is made.
        await connection.ask(self.bodies["mock", False])
        tasks, flying = json.loads((await connection.ask(b"", "/held", "GET"))[1])
        connection.close()
        memory, files = self.process.memory(), self.process.files()
        return {"memory_mib": memory, "files": files, "tasks": tasks, "in_flight": flying}


# Of the requests and of the time: to warm up, to halfway, to the end.
SHARES = (0.1, 0.4, 0.5)


async def bench_soak(
    requests: int, workers: int, policy: str, minutes: float = math.inf
) -> dict[str, Any]:
    """The report, ready for JSON."""
    start = time.monotonic()
    with ExitStack() as stack:
        arms = open_arms(stack, (policy,))
        soak = Soak(next(process for name, process in arms.items() if name != DIRECT))
        held = [
            await soak.play(round(requests * share), workers, minutes * 60 * share)
            for share in SHARES
        ]
        return {
            "requests": soak.answers.total(),
            "seconds": round(time.monotonic() - start, 1),
            "workers": workers,
            "policy": policy,
            "held": held,
            "grown": grown(held),
            "answers": dict(soak.answers.most_common()),
            "leaked": soak.leaked,
            "machine": tell_machine(),
        }


def grown(held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What there is more of at the end than after warming up; of memory, as a share."""
    first, last = held[0], held[-1]
    more = {name: last[name] - first[name] for name in ("files", "tasks") if last[name] is not None}
    if last["memory_mib"] is None:
        return more
    return {"memory": round(last["memory_mib"] / first["memory_mib"] - 1, 4), **more}
