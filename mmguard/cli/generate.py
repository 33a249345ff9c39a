"""`mmguard generate`: safe training data from rows of prompts and pictures."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from mmguard.cli.console import Json, ModelName, PolicyName, Served, busy, err, show, tabulate

if TYPE_CHECKING:
    from threading import Event


class Jobs(TyperGroup):
    """`mmguard generate INPUT` is `mmguard generate run INPUT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


jobs = typer.Typer(
    cls=Jobs, no_args_is_help=True, help="Safe training data from prompts and pictures."
)
Made = Annotated[Path, typer.Argument(help="The folder that mmguard generate wrote.")]


@jobs.command("run")
def generate(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="JSONL, JSON, CSV, Parquet, or a folder.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; an unfinished job goes on.")],
    model: ModelName = "embedded",
    policy: PolicyName = "balanced",
    served: Served = "default",
    prompts: Annotated[
        Path | None, typer.Option(help="For a folder of pictures: a file, one prompt a line.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or tar that pictures' names start at.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Rows under way at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0)] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Read so many rows.")] = None,
    rejected: Annotated[
        float, typer.Option(min=0, max=1, help="Stop past this share of rows without answer.")
    ] = 0.05,
    licence: Annotated[str, typer.Option("--license", help="Of rows that name none.")] = "",
    as_json: Json = False,
) -> None:
    """Answer every row under a policy, into a folder of rows; `run` may be left out.

    The same command goes on where it stopped; Ctrl-C ends what is under way first.
    """
    from mmguard.batch.job import Job, Plan
    from mmguard.models import opened
    from mmguard.wrap import Wrapped

    options = {"max_tokens": max_tokens, "temperature": temperature}
    facts = {"license": licence} if licence else {}
    plan = Plan(source, prompts, images, options, size, limit, rejected, facts)
    with opened(model, served=served) as answering:
        with busy("starting"):
            job = Job(Wrapped(answering, policy), plan, out)
        with patient(job.stop):
            follow(job, total(source, limit))
    if as_json:
        show(dict(job.counts))
    else:
        tabulate(f"rows, in {out}", ("decision", "rows"), sorted(job.counts.items()))
    if job.stop.is_set():
        err.print("stopped; the same command goes on from here")
        raise typer.Exit(130)


def follow(job: Any, rows: int | None) -> None:
    """Run the job under a bar that tells rate, time left and decisions so far."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("answering", total=rows, rate="")
        for counts in job.run():
            told = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bar.update(task, completed=counts.total(), description=told, rate=rate)


@contextmanager
def patient(stop: Event) -> Iterator[None]:
    """The first Ctrl-C, or a SIGTERM, lets what is under way end; the second is at once."""

    def drain(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        err.print("finishing the rows under way; Ctrl-C again leaves them")

    old = {each: signal.signal(each, drain) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


def total(source: Path, limit: int | None) -> int | None:
    """How many rows there will be, where that is quickly told."""
    from mmguard.rows import count_rows

    if ".jsonl" not in source.suffixes or not source.is_file():
        return limit
    return min(count_rows(source), limit or 2**62)


@jobs.command()
def export(
    job: Made,
    to: Annotated[
        list[str] | None, typer.Option("--format", help="May be given often; by default all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="By default `export` in the folder.")] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Parquet too, with the pictures inside for TRL.")
    ] = False,
    most: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out answers that score so much or more.")
    ] = 1,
    refusals: Annotated[
        float, typer.Option(min=0, max=1, help="The largest share of plain refusals.")
    ] = 0.3,
    as_json: Json = False,
) -> None:
    """Write a job's rows for trainers: TRL, LLaVA, LLaMA-Factory, ms-swift, Axolotl, LMFlow, ..."""
    from mmguard.batch import curate
    from mmguard.batch.export import export as write
    from mmguard.batch.formats import FORMATS

    def blocks() -> list[curate.Block]:
        below = [curate.Below(most)] if most < 1 else []
        return [curate.whole, curate.spoken, *below, curate.Once(), curate.Refusals(refusals)]

    with busy("writing"):
        made = [
            found
            for name in to or sorted(FORMATS)
            for found in write(job, out or job / "export", [name], blocks(), parquet)
        ]
    if as_json:
        show({each.name: {"records": each.records, "left_out": each.left_out} for each in made})
        return
    lines = ((each.name, each.records, tell(each.left_out), str(each.path)) for each in made)
    tabulate("exports", ("format", "records", "left out", "folder"), lines)


def tell(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in sorted(counts.items()))


@jobs.command()
def report(
    job: Made,
    out: Annotated[Path | None, typer.Option(help="By default `report.html` in it.")] = None,
    as_json: Json = False,
) -> None:
    """Decisions, scores before and after, costs and examples of a job, as a page."""
    from mmguard.batch.report import render, tally

    with busy("reading"):
        made = tally(job)
        page = out or job / "report.html"
        page.write_text(render(job, made), encoding="utf-8")
    if as_json:
        show(made.report())
    else:
        err.print(f"report: {page}", soft_wrap=True)
