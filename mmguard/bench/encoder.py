"""What an encoder bundle costs, beside the same encoder in plain torch, in one run.

The twin in torch has random weights: time does not depend on them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mmguard.bundles import load_detector
from mmguard.detect.encoder import EncoderDetector
from mmguard.detect.windows import Window
from mmguard.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (64, 128, 256)
TOGETHER, CORES = 32, 2
START = """
import json, pathlib, resource, time
start = time.perf_counter()
from mmguard.bundles import load_detector
from mmguard.messages import parse
from mmguard.types import Sample
load_detector({name!r}).score([Sample(parse("What is the capital of France?"), "Paris.")])
took = time.perf_counter() - start
status = pathlib.Path("/proc/self/status")
if status.exists():
    # Not getrusage: its peak is inherited from whoever started this interpreter.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    peak = int(lines["VmHWM"].split()[0]) * 1024 / 1e6
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({{"start_s": took, "memory_mb": peak}}))
"""


@dataclass(frozen=True)
class Twin:
    """The same architecture in torch, at single precision, as transformers runs it."""

    body: Any
    torch: Any

    def run(self, ids: Tensor) -> None:
        with self.torch.inference_mode():
            self.body(input_ids=ids, attention_mask=self.torch.ones_like(ids))

    @contextmanager
    def cores(self, count: int) -> Iterator[None]:
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(count)
        try:
            yield
        finally:
            self.torch.set_num_threads(before)


def bench_detector(name: str, layers: int | None = None, rounds: int = 30) -> dict[str, float]:
    """p50 of one window on one core and windows a second on two, ours beside torch's.

    `layers` are those of the torch encoder; by default as many as the bundle has.
    """
    single, double = load_encoder(name), load_encoder(name, CORES)
    twin = make_twin(layers or count_layers(single))
    found: dict[str, float] = {}
    for length in LENGTHS:
        found |= latency(single, twin, length, rounds)
        found |= throughput(double, twin, length, max(1, rounds // 10))
    return {**found, **bench_start(name)}


def load_encoder(name: str, threads: int = 1) -> EncoderDetector:
    detector = load_detector(name)
    if not isinstance(detector, EncoderDetector):
        raise InputError(f"detector {name!r} is no encoder: `mmguard bench detectors` times any")
    return EncoderDetector(name, detector.thresholds, detector.session, detector.parts, threads)


def count_layers(detector: EncoderDetector) -> int:
    return int(detector.session.get_modelmeta().custom_metadata_map["layers"])


def make_twin(layers: int) -> Twin:
    try:
        import torch
        from transformers import BertConfig, BertModel
    except ImportError as exc:
        raise MissingExtra("torch", "train", "the comparison with torch") from exc
    config = BertConfig(
        hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536
    )
    return Twin(BertModel(config, add_pooling_layer=False).eval(), torch)


def make_window(length: int, number: int = 0) -> Window:
    ids = tuple(2000 + (number * 7919 + place * 31) % 20000 for place in range(length))
    return Window(ids, (0,) * (length // 3) + (1,) * (length - length // 3))


def latency(detector: EncoderDetector, twin: Twin, length: int, rounds: int) -> dict[str, float]:
    window = make_window(length)
    ids = twin.torch.tensor([window.ids])
    with twin.cores(1):
        ours, theirs = race(partial(detector.run, window), partial(twin.run, ids), rounds)
    return {
        f"ms_{length}": ours * 1e3,
        f"torch_ms_{length}": theirs * 1e3,
        f"ratio_{length}": theirs / ours,
    }


def throughput(detector: EncoderDetector, twin: Twin, length: int, rounds: int) -> dict[str, float]:
    windows = {str(i).encode(): make_window(length, i) for i in range(TOGETHER)}

    def ours() -> None:
        detector.cache.kept.clear()
        detector.read(windows)

    ids = twin.torch.tensor([window.ids for window in windows.values()])
    with twin.cores(CORES):
        mine, theirs = race(ours, partial(twin.run, ids), rounds)
    return {
        f"pairs_s_{length}": TOGETHER / mine,
        f"torch_pairs_s_{length}": TOGETHER / theirs,
    }


def race(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """The median seconds of each, taking turns, so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for work, own in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def bench_start(name: str, rounds: int = 5) -> dict[str, float]:
    """Seconds of import, load and first score, and the memory then, in a fresh interpreter."""
    code = START.format(name=name)
    found = [
        json.loads(
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
        )
        for _ in range(rounds)
    ]
    return {key: statistics.median(each[key] for each in found) for key in found[0]}
