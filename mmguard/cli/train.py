"""`mmguard train`: make a detector from data, and measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from mmguard.bundles import load_detector
from mmguard.cli.console import Json, err, out, show

train = typer.Typer(help="Make a detector from data.", no_args_is_help=True)


@train.command()
def linear(
    data: Annotated[list[Path], typer.Option(help="JSONL rows to train on; may be given often.")],
    dev: Annotated[Path, typer.Option(help="JSONL rows to measure and set thresholds on.")],
    to: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Train the linear harm detector: from data to a bundle in one command."""
    from mmguard.train.linear import FITS, train_linear

    with Progress(console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("training", total=FITS)
        result = train_linear(data, dev, to, seed=seed, tick=lambda: progress.advance(task))
    if as_json:
        show(result)
    else:
        out.print(f"wrote {escape(str(to))}", soft_wrap=True)


@train.command()
def measure(
    detector: Annotated[str, typer.Argument(help="Name or folder.")],
    dev: Annotated[Path, typer.Option(help="Labelled JSONL rows.")],
) -> None:
    """Measure a detector on labelled rows: the figures of an eval.json."""
    from mmguard.train.measure import load_rows, measure as figures

    typer.echo(json.dumps(figures(load_detector(detector), load_rows(dev)), indent=2))
