"""What a measurement ran on: the facts that its figures depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmguard import __version__

PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers")


def tell_machine(model: Any = None) -> dict[str, Any]:
    """Processor, cores, load, versions; of a torch model its device, type and size too."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "mmguard": __version__,
        **{name: installed(name) for name in PACKAGES},
    }
    return facts if model is None else {**facts, **tell_model(model)}


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those it is bound to, and a container's share of them.

    `quota` is the control group's own account: microseconds of work in each so many, or max.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        work, _, period = quota.read_text(encoding="ascii").partition(" ")
        share = int(work) / int(period)
    except (OSError, ValueError):
        return bound or 1
    return max(1, min(bound or 1, int(share)))


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, platform.processor())


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tell_model(model: Any) -> dict[str, Any]:
    import torch

    device = model.device
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(weights.numel() for weights in model.parameters()),
    }
