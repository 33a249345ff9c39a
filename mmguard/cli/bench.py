"""`mmguard bench`: what mmguard costs."""

from __future__ import annotations

from typing import Annotated

import typer

from mmguard.cli.console import Json, busy, show_figures

bench = typer.Typer(help="Measure what mmguard costs.", no_args_is_help=True)


@bench.command()
def flow(as_json: Json = False) -> None:
    """The guard's own cost a request with scripted models, and the time to import the core."""
    from mmguard.bench import bench_flow, bench_import

    with busy("measuring"):
        figures = {**bench_flow(), **bench_import()}
    show_figures("flow", figures, as_json)


@bench.command("detectors")
def time_detectors(as_json: Json = False) -> None:
    """What each shipped detector takes for one answer of 200 words."""
    from mmguard.bench import bench_detectors

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
    from mmguard.bench_encoder import bench_detector

    with busy("measuring"):
        figures = bench_detector(name, layers)
    show_figures("detector", figures, as_json)
