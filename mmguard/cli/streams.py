"""`mmguard eval streams`: how early harm is seen while an answer is still coming."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmguard.bundles import load_detector
from mmguard.cli.check import threshold_of
from mmguard.cli.console import Json, busy, show, tabulate
from mmguard.cli.evals import DetectorName, read


def streams(
    files: Annotated[list[Path], typer.Argument(help="JSONL rows: prompt, response, label.")],
    detector: DetectorName = "response-harm",
    strictness: Annotated[str, typer.Option(help="low, medium, high, or a score.")] = "medium",
    limit: Annotated[int, typer.Option(min=1, help="How many answers of each kind.")] = 400,
    as_json: Json = False,
) -> None:
    """The share of a harmful answer seen before the alarm; alarms on the way of harmless ones."""
    from mmguard.evals.streams import measure_streams
    from mmguard.rows import make_sample

    found = load_detector(detector)
    examples = read(files, "answer", None, None, None).examples
    rows = [{"prompt": e.prompt, "response": e.response} for e in examples]
    with busy("following"):
        figures = measure_streams(
            found,
            [make_sample(row, Path()) for row in rows],
            [e.harmful for e in examples],
            threshold=threshold_of(found, strictness),
            limit=limit,
        )
    if as_json:
        show(figures)
    else:
        tabulate("streams, checked every 20 words", ("figure", "value"), figures.items())
