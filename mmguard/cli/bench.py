"""`mmguard bench`: what mmguard costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import track

from mmguard.cli.console import Json, busy, err, out, show_figures, tabulate

if TYPE_CHECKING:
    from mmguard.bench.repair import Plans, Round, Run

bench = typer.Typer(help="Measure what mmguard costs.", no_args_is_help=True)


@bench.command()
def flow(as_json: Json = False) -> None:
    """The guard's own cost a request with scripted models, and the time to import the core."""
    from mmguard.bench.flow import bench_flow, bench_import

    with busy("measuring"):
        figures = {**bench_flow(), **bench_import()}
    show_figures("flow", figures, as_json)


@bench.command("detectors")
def time_detectors(as_json: Json = False) -> None:
    """What each shipped detector takes for one answer of 200 words."""
    from mmguard.bench.flow import bench_detectors

    with busy("measuring"):
        figures = bench_detectors()
    show_figures("detectors", figures, as_json)


@bench.command()
def detector(
    name: str = "response-harm",
    layers: Annotated[
        int | None, typer.Option(help="Of the torch encoder beside it; by default as many.")
    ] = None,
    as_json: Json = False,
) -> None:
    """An encoder's milliseconds a window beside plain torch; its start and its memory."""
    from mmguard.bench.encoder import bench_detector

    with busy("measuring"):
        figures = bench_detector(name, layers)
    show_figures("detector", figures, as_json)


@bench.command("repair")
def time_repairs(
    model: Annotated[
        str, typer.Option(help="random, embedded, or a HuggingFace folder or name.")
    ] = "random",
    policy: Annotated[
        list[str] | None, typer.Option(help="A preset or a policy file; may be given often.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="The median is over these.")] = 5,
    draft: Annotated[int, typer.Option(min=1, help="Tokens of a draft.")] = 260,
    caption: Annotated[int, typer.Option(min=1, help="Tokens of a description.")] = 128,
    repaired: Annotated[int, typer.Option(min=1, help="Tokens of a mended answer.")] = 154,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Take draft's and mended answer's from JSONL rows: harmful, safe."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="How much of a harmful draft flags it.")
    ] = 0.42,
    mixed: Annotated[
        float, typer.Option(min=0, max=1, help="Of mixed traffic, how much is harmful.")
    ] = 0.1,
    stream: Annotated[bool, typer.Option("--stream", help="Ask for answers as streams.")] = False,
    layers: Annotated[int, typer.Option(min=1, help="Of the random model.")] = 6,
    width: Annotated[int, typer.Option(min=8, help="Of the random model.")] = 512,
    side: Annotated[
        int, typer.Option(min=14, help="Pixels of its pictures, a token each 14 squared.")
    ] = 336,
    to: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """What guarding costs an answer, as ratios to no guard: tokens, calls and seconds."""
    from mmguard.bench.llava import Size
    from mmguard.bench.repair import POLICIES, Plans, Run, bench_repair, open_subject
    from mmguard.bench.script import Lengths, measure_lengths

    lengths = Lengths(draft, caption, repaired)
    if pairs:
        lengths = measure_lengths(pairs, caption)
    plans = Plans(tuple(policy or POLICIES), rounds, lengths, share, mixed, stream)
    run = Run(open_subject(model, Size(layers, width, side)), plans)
    made = bench_repair(run, model, play(run, plans))
    if to:
        to.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    show_repairs(made)


def play(run: Run, plans: Plans) -> list[Round]:
    return list(
        track(
            run.rounds(),
            "measuring",
            total=plans.rounds,
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )
    )


def show_repairs(made: Mapping[str, Any]) -> None:
    title = f"{made['model']}: cost by the same run's cost without a guard"
    columns = ("traffic", "policy", "time", "range", "CPU time", "read", "generated", "calls")
    tabulate(title, columns, repair_lines(made["ratios"]))
    title = "an answer, the median: seconds, those of detectors, tokens, calls"
    columns = ("traffic", "policy", "s", "detect", "prompt", "read", "generated", "calls")
    tabulate(title, columns, answer_lines(made["per_answer"]))
    for policy, saved in made["reuse"].items():
        cuts = ", ".join(f"{stage} {cut['cut']:.1%}" for stage, cut in saved.items())
        out.print(f"{escape(policy)}: tokens not read again: {cuts}", soft_wrap=True)
    for note in [*made["scripted"], *tell_rest(made)]:
        out.print(escape(note), soft_wrap=True)


def repair_lines(ratios: Mapping[str, Any]) -> Iterable[Iterable[Any]]:
    for kind, arms in ratios.items():
        for arm, found in arms.items():
            time = found["seconds"]
            names = ("cpu_s", "read", "generated", "calls")
            counts = (f"{found[name]['median']:.2f}" for name in names)
            around = f"{time['low']:.2f}-{time['high']:.2f}"
            yield kind, arm, f"{time['median']:.3f}", around, *counts


def answer_lines(costs: Mapping[str, Any]) -> Iterable[Iterable[Any]]:
    for kind, arms in costs.items():
        for arm, found in arms.items():
            counts = (f"{found[name]:.1f}" for name in ("prompt", "read", "generated", "calls"))
            yield kind, arm, f"{found['seconds']:.3f}", f"{found['detector_s']:.3f}", *counts


def tell_rest(made: Mapping[str, Any]) -> Iterable[str]:
    """What became of the answers, why nothing was reused, and on what this ran."""
    for kind, arms in made["outcomes"].items():
        told = (f"{arm}: {spell(counts)}" for arm, counts in arms.items())
        yield f"{kind} answers: {'; '.join(told)}."
    if made["unshared"]:
        yield f"No prompt is reused: {made['unshared']}."
    yield tell_facts(made["machine"])


def spell(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{how} {count}" for how, count in counts.items())


@bench.command("server")
def time_server(
    policy: Annotated[
        list[str] | None,
        typer.Option(help="phrases, a preset or a policy file; may be given often."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each with the arms in another order.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="For one arm and one kind of traffic, each round.")
    ] = 0.5,
    to: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """What the sidecar adds to a request, beside a mock upstream asked directly in one run."""
    from mmguard.bench.server import POLICIES, Plans, bench_server

    with busy("measuring"):
        made = asyncio.run(bench_server(Plans(tuple(policy or POLICIES), rounds, seconds)))
    if to:
        to.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    columns = ("picture", "answer", "at once", "arm", "p50 ms", "p95", "p99", "added p50", "/s")
    tabulate("a request, direct and through the sidecar", columns, server_lines(made["cells"]))
    for arm, found in made["leaks"].items():
        memory = made["memory"][arm]
        told = f"{found['leaked']} of {found['asked']} harmful answers left"
        told += f"; {memory['warm_mib']} MiB when warm, {memory['end_mib']} MiB at the end"
        out.print(f"{escape(arm)}: {told}", soft_wrap=True)
    out.print(escape(f"client: {made['client']}"), soft_wrap=True)
    out.print(escape(tell_facts(made["machine"])), soft_wrap=True)


def server_lines(cells: Iterable[Mapping[str, Any]]) -> Iterable[Iterable[Any]]:
    for cell in cells:
        picture = f"{cell['body']} KiB" if cell["body"] else "none"
        how = "stream" if cell["stream"] else "whole"
        times = (f"{cell[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms", "added_p50_ms"))
        yield picture, how, cell["workers"], cell["arm"], *times, f"{cell['per_s']:.0f}"


@bench.command()
def soak(
    requests: Annotated[int, typer.Option(min=100, help="Faults among them.")] = 5000,
    workers: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    policy: Annotated[str, typer.Option(help="phrases, a preset or a policy file.")] = "phrases",
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Fewer requests, if there is no time for all.")
    ] = 60,
    to: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Whether a sidecar under faults keeps memory, files or tasks, and whether harm gets out."""
    from mmguard.bench.soak import bench_soak

    with busy("soaking"):
        made = asyncio.run(bench_soak(requests, workers, policy, minutes))
    if to:
        to.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    columns = ("held", "after warm-up", "halfway", "at the end")
    lines = ((name, *(stage[name] for stage in made["held"])) for name in made["held"][0])
    title = f"{made['requests']} requests by {made['policy']} in {made['seconds']:.0f} s"
    tabulate(title, columns, lines)
    out.print(escape(f"grown since warm-up: {spell_growth(made['grown'])}"), soft_wrap=True)
    out.print(
        escape(f"answers: {spell(made['answers'])}; leaked: {made['leaked']}"), soft_wrap=True
    )
    out.print(escape(tell_facts(made["machine"])), soft_wrap=True)


def spell_growth(grown: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:+.1%}" if name == "memory" else f"{name} {value:+}"
        for name, value in grown.items()
    )


def tell_facts(machine: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in machine.items())


@bench.command("generate")
def time_jobs(
    rows: Annotated[int, typer.Option(min=1, help="Of one job.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 48,
    size: Annotated[
        list[int] | None, typer.Option(help="Rows a batch; may be given often.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="The median is over these.")] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Rows a second of a batch job, beside the same model unguarded and guarded row by row."""
    from mmguard.bench.generate import Plans, bench_generate

    sizes = tuple(size or Plans().sizes)
    with busy("measuring"):
        made = bench_generate(Plans(rows, tokens, sizes, rounds))
    if to:
        to.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for kind, speeds in made["speeds"].items():
        ratios = made["ratios"][kind]
        lines = (
            (name, f"{speed['per_s']:.2f}", *ratios.get(name, {"": "", "-": ""}).values())
            for name, speed in speeds.items()
        )
        columns = ("arm, rows a batch", "rows/s", "to unguarded", "to the loop")
        tabulate(f"{kind} rows", columns, lines)
    out.print(escape(tell_facts(made["machine"])), soft_wrap=True)
