"""What the guard itself costs: scripted models, so that nothing but the flow takes time."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from mmguard.bundles import load_detector, shipped
from mmguard.drive import run, run_many
from mmguard.guard import guard
from mmguard.messages import parse
from mmguard.models.scripted import ScriptedDetector, ScriptedModel
from mmguard.types import Finding, Reply, Sample
from mmguard.wrap import Wrapped

T = TypeVar("T")
TOGETHER = 64
POLICY = {"name": "bench", "output": [{"detector": "first"}, {"detector": "second"}]}


def clock(work: Callable[[], Any], rounds: int, each: int) -> float:
    """Microseconds an item: the median over rounds, each of which does `each` items."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / each)
    return statistics.median(times) * 1e6


def always(value: T) -> Callable[[Any], T]:
    return lambda given: value


def bench_flow(rounds: int = 40) -> dict[str, float]:
    """Microseconds a request, guarded and not, under a policy of two checks that pass."""
    model = ScriptedModel(always(Reply("a harmless answer")))
    names = ("first", "second")
    detectors = {name: ScriptedDetector(always(Finding(name, 0.1)), name=name) for name in names}
    wrapped = Wrapped(model, POLICY, detectors=detectors)
    request = parse("What is the capital of France?")
    policy, runtime, many = wrapped.policy, wrapped.runtime, range(TOGETHER)

    def forget() -> None:
        model.seen.clear()
        for detector in detectors.values():
            detector.seen.clear()

    def single() -> None:
        forget()
        for _ in many:
            run(guard(request, policy), runtime)

    def together() -> None:
        forget()
        run_many((guard(request, policy) for _ in many), runtime)

    def direct() -> None:
        forget()
        for _ in many:
            model.generate([request])

    alone, batched, bare = (clock(work, rounds, TOGETHER) for work in (single, together, direct))
    return {
        "direct_us": bare,
        "one_by_one_us": alone,
        "together_us": batched,
        "one_by_one_ratio": alone / bare,
        "together_ratio": batched / bare,
    }


def bench_import(rounds: int = 7) -> dict[str, float]:
    """Milliseconds of `import mmguard` in a fresh interpreter, less an empty one's start."""

    def start(code: str) -> float:
        return clock(lambda: subprocess.run([sys.executable, "-c", code], check=True), rounds, 1)

    empty, full = start("pass"), start("import mmguard")
    return {"import_ms": (full - empty) / 1e3}


def bench_detectors(words: int = 200, rounds: int = 200) -> dict[str, float]:
    """Milliseconds of each shipped detector on one answer of this many words, the median."""
    reply = " ".join(f"word{i} of an answer" for i in range(words // 4))
    sample = Sample(parse("What is a good way to spend a day in Paris?"), reply)
    found = {}
    for name in shipped():
        detector = load_detector(name)
        found[f"{name}_ms"] = clock(partial(detector.score, [sample]), rounds, 1) / 1e3
    return found
