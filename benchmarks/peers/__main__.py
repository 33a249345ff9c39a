"""`python -m benchmarks.peers install`, then `python -m benchmarks.peers run --json out.json`.

Installs what mmguard is compared with, each into an environment of its own under `--root`; runs
them all before one upstream, in turns, and prints what each adds, loses and lets out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers.products import PACKAGES, PRODUCTS, install
from benchmarks.peers.run import Json, compare
from mmguard.bench.server import Plans

out = Console(soft_wrap=True, width=160)
ROOT = Path(".peers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("install", help="pinned versions, an environment each")
    setup.add_argument("packages", nargs="*", default=PACKAGES, help=", ".join(PACKAGES))
    run = commands.add_parser("run", help="measure and compare")
    run.add_argument("--peers", nargs="*", default=list(PRODUCTS), help=", ".join(PRODUCTS))
    run.add_argument("--rounds", type=int, default=5, help="each with the arms in another order")
    run.add_argument("--seconds", type=float, default=0.5, help="an arm, a cell, a round")
    run.add_argument(
        "--bodies", nargs="*", type=int, default=[0, 200, 2048], help="KiB of a picture"
    )
    run.add_argument("--at-once", nargs="*", type=int, default=[1, 8, 32])
    run.add_argument("--json", type=Path, help="write all figures here")
    for one in (setup, run):
        one.add_argument("--root", type=Path, default=ROOT, help="where the environments are")
    asked = parser.parse_args()
    if asked.command == "install":
        for package in asked.packages:
            install(package, asked.root)
    else:
        measure(asked)


def measure(asked: argparse.Namespace) -> None:
    plans = Plans(
        tuple(asked.peers), asked.rounds, asked.seconds, tuple(asked.bodies), tuple(asked.at_once)
    )
    made = asyncio.run(compare(asked.peers, plans, asked.root.resolve()))
    if asked.json:
        asked.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    show(made)


COSTS = (
    *("picture", "answer", "at once", "arm", "p50 ms", "+p50", "+p95", "+p99"),
    *("CPU ms", "/s", "failed"),
)
RATIOS = ["picture", "answer", "at once", "peer", "added", "CPU time", "mmguard's rate by its"]


def show(made: Json) -> None:
    print_table("a request, direct and through each: medians of rounds", COSTS, costs(made))
    print_table("peers by mmguard with its phrases", RATIOS, compared(made))
    for title, kind in (("harm planted upstream", "leaks"), ("what is kept", "conformance")):
        print_table(title, ("", *made[kind]), turned(made[kind]))
    for arm, found in made["memory_mib"].items():
        out.print(f"{arm}: {found['warm']} MiB when warm, {found['end']} at the end")
    out.print(json.dumps(made["machine"]))


def print_table(title: str, columns: Iterable[str], lines: Iterable[Iterable[object]]) -> None:
    table = Table(*columns, title=title, box=box.SIMPLE)
    for line in lines:
        table.add_row(*map(str, line))
    out.print(table)


def where(cell: Json) -> tuple[str, str, str]:
    picture = f"{cell['body']} KiB" if cell["body"] else "none"
    return picture, "stream" if cell["stream"] else "whole", str(cell["workers"])


def costs(made: Json) -> Iterable[tuple[str, ...]]:
    for cell in made["cells"]:
        names = ("p50_ms", "added_p50_ms", "added_p95_ms", "added_p99_ms")
        times = (f"{cell[name]:.1f}" for name in (*names, "cpu_ms"))
        yield *where(cell), cell["arm"], *times, f"{cell['per_s']:.0f}", str(cell["failed"])


def compared(made: Json) -> Iterable[tuple[str, ...]]:
    for line in made["ratios"]:
        told = (
            f"{one['median']:.1f} ({one['low']:.1f}-{one['high']:.1f})"
            for one in (line["added"], line["cpu"], line["rate"])
        )
        yield *where(line), line["peer"], *told


def turned(found: Json) -> Iterable[list[object]]:
    """Arms as columns."""
    arms = list(found.values())
    for name in arms[0]:
        cells = [arm[name] for arm in arms]
        yield [name, *({True: "yes", False: "no"}.get(cell, cell) for cell in cells)]


if __name__ == "__main__":
    main()
