"""One target under atheris: `python -m benchmarks.fuzz.guided TARGET FAILURES [libFuzzer's words]`.

A process of its own: libFuzzer ends it, and code must be watched before it is loaded.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris


def main(name: str, failures: str, *rest: str) -> None:
    logging.disable()
    with atheris.instrument_imports(include=["mmguard"]):
        from benchmarks.fuzz.targets import TARGETS
    from benchmarks.fuzz.box import Box

    atheris.Setup(["fuzz", *rest], Box(TARGETS[name], Path(failures)))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
