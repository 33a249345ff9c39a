"""Rounds of all products over one traffic, the probes before them, and the report."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.probe import Probe
from benchmarks.peers.products import PRODUCTS, Place, running
from mmguard.bench.server import DIRECT, Cell, Plans, Process, Run, quantiles, started
from mmguard.machine import tell_machine

OURS = "mmguard"
QUANTILES = ("p50_ms", "p95_ms", "p99_ms")
Json = dict[str, Any]


@dataclass(slots=True)
class Round:
    """What one round measured of one arm under one kind of traffic."""

    requests: int
    failed: int
    per_s: float
    cpu_ms: float
    times: Mapping[str, float]


async def compare(names: Sequence[str], plans: Plans, root: Path) -> Json:
    """The report, ready for JSON."""
    with ExitStack() as stack:
        arms, faults = open_all(stack, names, root)
        probes = {arm: Probe(place) for arm, place in arms.items()}
        leaks = {arm: await probe.leaks() for arm, probe in probes.items()}
        losses = {arm: await probe.losses() for arm, probe in probes.items()}
        run = Run(plans, arms)
        await run.warm()
        rounds = []
        for number in range(plans.rounds):
            rounds.append(await play(run, number))
            print(f"round {number + 1} of {plans.rounds}", file=sys.stderr)
        cells = [tell(rounds, cell, arm) for cell in run.cells for arm in arms]
        return {
            "plans": asdict(plans),
            "did not start": faults,
            "cells": cells,
            "ratios": [line for cell in run.cells for line in ratios(rounds, cell)],
            "leaks": leaks,
            "conformance": losses,
            "memory_mib": {
                arm: {"warm": run.start[arm], "end": place.memory()} for arm, place in arms.items()
            },
            "machine": tell_machine(),
        }


def open_all(
    stack: ExitStack, names: Sequence[str], root: Path
) -> tuple[dict[str, Process], dict[str, str]]:
    """The upstream and what could be started, and why the others could not."""
    upstream = stack.enter_context(started("upstream", module="benchmarks.peers.upstream"))
    upstream = Place(upstream.port, upstream.pid)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    arms, faults = {DIRECT: upstream}, {}
    for i, name in enumerate(names):
        product, url = PRODUCTS[name], f"http://127.0.0.1:{upstream.port}/v1"
        try:
            arms[name] = stack.enter_context(running(product, root, folder / str(i), url))
        except (OSError, RuntimeError) as exc:
            faults[name] = str(exc)
            print(f"{name}: {exc}", file=sys.stderr)
    return dict(arms), faults


async def play(run: Run, number: int) -> dict[tuple[Cell, str], Round]:
    """One round of every arm, told apart from the others."""
    run.clear()
    await run.play(number)
    return {
        key: Round(
            len(tally.times),
            tally.failed,
            len(tally.times) / tally.seconds,
            tally.cpu / len(tally.times) * 1e3,
            quantiles(tally.times),
        )
        for key, tally in run.tallies.items()
    }


Rounds = Sequence[Mapping[tuple[Cell, str], Round]]


def tell(rounds: Rounds, cell: Cell, arm: str) -> Json:
    """Medians over the rounds; added is to the same round's direct answers."""
    ours, base = ([one[cell, name] for one in rounds] for name in (arm, DIRECT))
    times = {q: median(one.times[q] for one in ours) for q in QUANTILES}
    added = {f"added_{q}": median(map(minus(q), ours, base)) for q in QUANTILES}
    return {
        **asdict(cell),
        "arm": arm,
        "requests": sum(one.requests for one in ours),
        "failed": sum(one.failed for one in ours),
        **times,
        **added,
        "per_s": median(one.per_s for one in ours),
        "cpu_ms": median(one.cpu_ms for one in ours),
    }


def minus(q: str) -> Any:
    return lambda one, other: one.times[q] - other.times[q]


def ratios(rounds: Rounds, cell: Cell) -> Iterable[Json]:
    """Each peer by mmguard, round by round: added time, and answers a second the other way."""
    for name in dict.fromkeys(arm for _, arm in rounds[0]):
        if name in (DIRECT, OURS) or (cell, OURS) not in rounds[0]:
            continue
        added, rates, cpu = [], [], []
        for one in rounds:
            base, ours, other = one[cell, DIRECT], one[cell, OURS], one[cell, name]
            mine = ours.times["p50_ms"] - base.times["p50_ms"]
            added.append((other.times["p50_ms"] - base.times["p50_ms"]) / max(mine, 1e-3))
            rates.append(ours.per_s / other.per_s)
            cpu.append(other.cpu_ms / max(ours.cpu_ms, 1e-3))
        found = {"added": spread(added), "rate": spread(rates), "cpu": spread(cpu)}
        yield {**asdict(cell), "peer": name, **found}


def spread(values: Sequence[float]) -> Json:
    low, high = round(min(values), 2), round(max(values), 2)
    return {"median": round(statistics.median(values), 2), "low": low, "high": high}


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)
