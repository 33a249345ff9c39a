"""A job killed again and again, each time at another moment: run as a program of its own.

Arguments: a folder to write, the number of kills, a seed. Prints how many rows each life left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from mmguard.batch.job import Job, Plan
from mmguard.models.scripted import ScriptedModel
from mmguard.wrap import Wrapped
from tests.world import harm_detector, make_policy, tempted

ROWS = 400


def make_job(source: Path, out: Path, size: int) -> Job:
    wrapped = Wrapped(ScriptedModel(tempted), make_policy(), detectors={"harm": harm_detector()})
    return Job(wrapped, Plan(source, size=size), out)


def work(source: Path, out: Path) -> None:
    for _ in make_job(source, out, 3).run():
        time.sleep(0.001)


def main(folder: Path, kills: int, seed: int) -> None:
    draw, source, lives = random.Random(seed), folder / "rows.jsonl", list[int]()
    source.write_text(
        "".join(json.dumps({"prompt": f"question {i}?"}) + "\n" for i in range(ROWS)),
        encoding="utf-8",
    )
    (folder / "none.jsonl").touch()
    work(folder / "none.jsonl", folder / "warm")
    for _ in range(kills):
        child = os.fork()
        if not child:
            work(source, folder / "out")
            os._exit(0)
        time.sleep(draw.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lives.append(sum(p.read_bytes().count(b"\n") for p in folder.glob("out/rows/*")))
    work(source, folder / "out")
    work(source, folder / "plain")
    print(json.dumps(lives))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
