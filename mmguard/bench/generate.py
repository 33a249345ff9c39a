"""Rows a second of a batch job, beside plain loops over the same model, in one run.

The model is a LLaVA of random weights; verdicts are scripted, and detectors do their work.
Every arm answers the same rows; arms change places from round to round.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmguard.batch.job import Job, Plan
from mmguard.bench.llava import Size, make_llava
from mmguard.bench.repair import limit_threads
from mmguard.bench.script import Overruled, Script
from mmguard.bundles import load_detector
from mmguard.machine import tell_machine
from mmguard.messages import parse
from mmguard.models.hf import HFModel
from mmguard.pictures import cases
from mmguard.policy import load_policy
from mmguard.types import Reply
from mmguard.wrap import Wrapped

SIZE = Size(layers=2, width=256, side=112)
TRAFFIC = {"harmless": 0.0, "mixed": 0.1}
Arm = Callable[[Sequence[Mapping[str, Any]]], object]


@dataclass(frozen=True, slots=True)
class Plans:
    """What is measured: `rows` a job, answers of `tokens`, batches of these sizes."""

    rows: int = 64
    tokens: int = 48
    sizes: tuple[int, ...] = (1, 8, 32)
    rounds: int = 3
    policy: str = "balanced"


class Bench:
    """One model, guarded and not, over rows written to a folder."""

    def __init__(self, plans: Plans, folder: Path) -> None:
        self.plans, self.folder, self.made = plans, folder, 0
        self.model = HFModel(*make_llava(SIZE), batch_size=max(plans.sizes))
        limit_threads(self.model)
        self.options = {"max_tokens": plans.tokens, "temperature": 0}
        for case in cases():
            case.draw().save(folder / f"{case.name}.png")

    def rows(self, share: float) -> list[dict[str, Any]]:
        """The demo's pictures, each with a question of its own; `share` of them to be flagged."""
        known, every = cases(), round(1 / share) if share else 0
        return [
            {
                "prompt": f"{known[i % len(known)].question} Row {i}.",
                "image": f"{known[i % len(known)].name}.png",
                "bad": bool(every) and i % every == 0,
            }
            for i in range(self.plans.rows)
        ]

    def plain(self, size: int) -> Arm:
        """Batches without a guard: what any guard is measured by."""

        def run(rows: Sequence[Mapping[str, Any]]) -> None:
            for start in range(0, len(rows), size):
                self.generate(rows[start : start + size])

        return run

    def generate(self, rows: Sequence[Mapping[str, Any]]) -> list[Reply]:
        asked = [parse(self.turn(row), self.options) for row in rows]
        return self.model.generate(asked)

    def turn(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        picture = {"type": "image", "image": str(self.folder / row["image"])}
        return [{"role": "user", "content": [picture, {"type": "text", "text": row["prompt"]}]}]

    def guarded(self, script: Script) -> Wrapped:
        policy = load_policy(self.plans.policy)
        detectors = {name: Overruled(load_detector(name), script) for name in policy.detectors}
        for detector in detectors.values():
            detector.fresh()
        return Wrapped(self.model, policy, detectors=detectors)

    def loop(self, script: Script) -> Arm:
        """Row by row through the guard: what a job is measured by."""

        def run(rows: Sequence[Mapping[str, Any]]) -> None:
            wrapped = self.guarded(script)
            for row in rows:
                wrapped.chat(self.turn(row), **self.options)

        return run

    def job(self, script: Script, size: int) -> Arm:
        def run(rows: Sequence[Mapping[str, Any]]) -> None:
            self.made += 1
            source = self.folder / f"{self.made}.jsonl"
            source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            plan = Plan(source, options=self.options, size=size)
            for _ in Job(self.guarded(script), plan, self.folder / f"out{self.made}").run():
                pass

        return run

    def measure(self, kind: str) -> dict[str, dict[str, float]]:
        """Rows a second by arm: the median over rounds, the lowest and the highest."""
        rows, script = self.rows(TRAFFIC[kind]), Script(1.0)
        script.marked = [self.generate([row])[0].text for row in rows if row["bad"]]
        arms = {
            **{f"unguarded, {size}": self.plain(size) for size in self.plans.sizes},
            "guarded, row by row": self.loop(script),
            **{f"job, {size}": self.job(script, size) for size in self.plans.sizes},
        }
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(self.plans.rounds):
            for name in random.Random(number).sample(list(arms), len(arms)):
                self.model.forget()
                start = time.perf_counter()
                arms[name](rows)
                speeds[name].append(len(rows) / (time.perf_counter() - start))
        return {name: spread(found) for name, found in speeds.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    found = {"per_s": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def bench_generate(plans: Plans) -> dict[str, Any]:
    """Speeds by traffic and arm, and the two ratios that count: to no guard, and to a loop."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plans, Path(folder))
        found = {kind: bench.measure(kind) for kind in TRAFFIC}
        machine = tell_machine(bench.model.model)
    ratios = {kind: compare(speeds, plans.sizes) for kind, speeds in found.items()}
    return {"plans": asdict(plans), "speeds": found, "ratios": ratios, "machine": machine}


def compare(
    speeds: Mapping[str, Mapping[str, float]], sizes: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Of each job: its speed by that of the same batches unguarded, and of the guarded loop."""
    loop = speeds["guarded, row by row"]["per_s"]
    made = {}
    for size in sizes:
        ours = speeds[f"job, {size}"]["per_s"]
        plain = speeds[f"unguarded, {size}"]["per_s"]
        made[f"job, {size}"] = {
            "to_unguarded": round(ours / plain, 3),
            "to_loop": round(ours / loop, 3),
        }
    return made
