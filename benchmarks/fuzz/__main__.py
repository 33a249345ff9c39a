"""`python -m benchmarks.fuzz TARGET --seconds 60`: cases tried, and promises that did not hold.

With atheris installed the search follows the code's branches; without it, changes are random.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fuzz.box import Box, play
from benchmarks.fuzz.seeds import dictionary, seeds
from benchmarks.fuzz.targets import TARGETS

# A target that takes longer over one input has hung.
HANG = 20


def guided(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    """A run of libFuzzer's, and what it says of itself."""
    (corpus := folder / "corpus").mkdir()
    for i, data in enumerate(seeds(name)):
        (corpus / str(i)).write_bytes(data)
    (folder / "words").write_text(dictionary(), encoding="utf-8")
    flags = [f"-max_total_time={seconds}", f"-dict={folder / 'words'}", "-print_final_stats=1"]
    flags += [f"-timeout={HANG}", "-max_len=4096", f"-artifact_prefix={folder}/failures/"]
    command = [sys.executable, "-m", "benchmarks.fuzz.guided", name, str(folder / "failures")]
    done = subprocess.run(
        [*command, *flags, str(corpus)], capture_output=True, text=True, check=False
    )
    cases = re.findall(r"number_of_executed_units:\s*(\d+)", done.stderr)
    branches = re.findall(r"cov: (\d+)", done.stderr)
    if not cases:
        sys.exit(f"the fuzzer ended with {done.returncode}: {done.stderr[-1000:]}")
    return {"engine": "atheris", "cases": int(cases[-1]), "branches": int(branches[-1])}


def blind(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    box = Box(TARGETS[name], folder / "failures")
    words = [word.strip('"').encode() for word in dictionary().splitlines()]
    play(box, list(seeds(name)), words, seconds)
    return {"engine": "random", "cases": box.cases}


def fuzz(name: str, seconds: int, folder: Path, engine: str) -> dict[str, Any]:
    """The report, ready for JSON; failing inputs lie in the folder's `failures`."""
    (failures := folder / "failures").mkdir(parents=True)
    found = (guided if engine == "atheris" else blind)(name, seconds, folder)
    reasons = [path.read_text(encoding="utf-8").splitlines()[0] for path in failures.glob("*.txt")]
    hung = [path.name for path in failures.iterdir() if path.name.startswith(("timeout", "oom"))]
    return {"target": name, "seconds": seconds, **found, "failures": [*reasons, *hung]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path, help="an empty folder for what fails")
    known = importlib.util.find_spec("atheris") is not None
    parser.add_argument("--engine", choices=["atheris", "random"], default=None)
    asked = parser.parse_args()
    engine = asked.engine or ("atheris" if known else "random")
    logging.disable()
    out = asked.out or Path(tempfile.mkdtemp(prefix="mmguard-fuzz-"))
    reports = [fuzz(name, asked.seconds, out / name, engine) for name in asked.targets]
    for report in reports:
        print(json.dumps(report, indent=1))
    print(f"inputs that failed: {out}/*/failures")
    sys.exit(any(report["failures"] for report in reports))


if __name__ == "__main__":
    main()
