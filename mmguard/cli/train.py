"""`mmguard train`: make a detector or an adapter from data, and measure it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from mmguard.bundles import load_detector
from mmguard.cli.console import Json, err, out, show

if TYPE_CHECKING:
    from mmguard.train.adapter import Job

train = typer.Typer(help="Make a detector or an adapter from data.", no_args_is_help=True)
Data = Annotated[list[Path], typer.Option(help="JSONL rows to train on; may be given often.")]
Dev = Annotated[Path, typer.Option(help="JSONL rows to measure and set thresholds on.")]
Out = Annotated[Path, typer.Option("--out", help="The bundle's folder.")]


@train.command()
def linear(data: Data, dev: Dev, to: Out, seed: int = 0, as_json: Json = False) -> None:
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
def encoder(
    data: Data,
    dev: Dev,
    to: Out,
    base: Annotated[
        str, typer.Option(help="A BERT checkpoint: a folder, or a hub name to download.")
    ],
    work: Annotated[
        Path | None, typer.Option(help="Checkpoints go here (default: OUT.work).")
    ] = None,
    layers: Annotated[
        list[int] | None,
        typer.Option(help="Layers of each student in turn (default: one of 6); the last ships."),
    ] = None,
    passes: Annotated[float, typer.Option(help="Times that each stage sees the data.")] = 1.0,
    rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 8e-5,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:0.")] = "cpu",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Train the encoder: from data to a bundle in one command; run again to go on."""
    from mmguard.train.encoder import Stages, train_encoder

    with Progress(console=err, disable=not err.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def tick(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=steps)
            progress.update(tasks[stage], completed=step, description=f"{stage}, loss {loss:.3f}")

        folder = work or to.with_name(f"{to.name}.work")
        stages = Stages(base, folder, passes, tuple(layers or (6,)), rate, seed, device, tick)
        result = train_encoder(data, dev, to, stages)
    if as_json:
        show(result)
    else:
        out.print(f"wrote {escape(str(to))}", soft_wrap=True)


Base = Annotated[
    Path | None, typer.Option(help="A chat model's folder (default: that of embedded).")
]
Work = Annotated[Path | None, typer.Option(help="Checkpoints go here (default: OUT.work).")]
Devs = Annotated[list[Path], typer.Option(help="JSONL rows to measure on; may be given often.")]
Limit = Annotated[int, typer.Option(help="The most dev rows of one group.")]
Size = Annotated[float, typer.Option(help="Scales how much of the data is drawn.")]


@train.command()
def conscience(
    data: Data,
    dev: Devs,
    to: Out,
    base: Base = None,
    work: Work = None,
    size: Size = 1.0,
    limit: Limit = 40,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Tune `embedded` to decline what is plainly harmful; run again to go on."""
    from mmguard.train.adapter import Job

    folder = work or to.with_name(f"{to.name}.work")
    job = Job("conscience", data, dev, to, folder, seed, base, size=size, limit=limit)
    tune_adapter(job, as_json)


@train.command()
def detoxifier(
    data: Data,
    dev: Devs,
    to: Out,
    base: Base = None,
    work: Work = None,
    encoder: Annotated[
        Path | None, typer.Option(help="A BERT folder that measures how much meaning is kept.")
    ] = None,
    size: Size = 1.0,
    limit: Limit = 90,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Tune `embedded` to write harmful answers anew; run again to go on."""
    from mmguard.train.adapter import Job

    folder = work or to.with_name(f"{to.name}.work")
    job = Job("detoxifier", data, dev, to, folder, seed, base, encoder, size=size, limit=limit)
    tune_adapter(job, as_json)


def tune_adapter(job: Job, as_json: bool) -> None:
    from mmguard.train.adapter import train_adapter

    with Progress(console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task(job.kind, total=None)

        def tick(step: int, steps: int, loss: float) -> None:
            told = f"{job.kind}, loss {loss:.3f}"
            progress.update(task, completed=step, total=steps, description=told)

        result = train_adapter(replace(job, tick=tick))
    if as_json:
        show(result)
    else:
        out.print(f"wrote {escape(str(job.out))}", soft_wrap=True)


@train.command()
def measure(
    detector: Annotated[str, typer.Argument(help="Name or folder.")],
    dev: Annotated[Path, typer.Option(help="Labelled JSONL rows.")],
) -> None:
    """Measure a detector on labelled rows: the figures of an eval.json."""
    from mmguard.train.measure import load_rows, measure as figures

    typer.echo(json.dumps(figures(load_detector(detector), load_rows(dev)), indent=2))
