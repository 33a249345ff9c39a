"""`mmguard chat` and `mmguard demo`: ask a model, guarded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mmguard.cli.console import Json, ModelName, PolicyName, Served, busy, clip, err, out, show
from mmguard.models import opened
from mmguard.policy import load_policy
from mmguard.record import record
from mmguard.types import Guarded
from mmguard.wrap import wrap


def demo(
    report: Annotated[Path | None, typer.Option(help="Also write an HTML page here.")] = None,
    policy: PolicyName = "balanced",
    model: ModelName = "embedded",
    as_json: Json = False,
) -> None:
    """Ask a small MLLM about a few pictures, unguarded and guarded, side by side."""
    from mmguard.demo import play, render, tally
    from mmguard.pictures import cases

    if not as_json:
        told = f"{len(cases())} pictures, each answered by the model {model!r} alone and guarded"
        out.print(f"{escape(told)} by the policy [bold]{escape(load_policy(policy).name)}[/].")
    results = []
    with opened(model) as answering:
        for result in track(
            play(answering, policy),
            "answering (the first run prepares the model)",
            total=len(cases()),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        ):
            results.append(result)
            if not as_json:
                show_case(result)
    if as_json:
        show(results)
    else:
        out.print(f"[bold]{tally(results)}[/].")
    if report:
        report.write_text(render(results, load_policy(policy).name), encoding="utf-8")
        err.print(f"report: {report}", soft_wrap=True)


def show_case(result: dict[str, Any]) -> None:
    from mmguard.demo import how, summarise

    color = {"pass": "green", "repair": "yellow", "block": "red"}[result["action"]]
    table = Table(show_lines=True, title_justify="left", expand=True, show_header=False)
    table.title = f"[bold]{escape(result['name'])}[/] ({result['kind']} request)"
    table.add_column(width=11)
    table.add_column(ratio=1)
    table.add_row("asked", escape(result["question"]))
    table.add_row("unguarded", escape(clip(result["unguarded"])))
    table.add_row("guarded", f"[{color}]{escape(clip(result['guarded']))}[/]")
    scores = escape(summarise(result["scores"]))
    times = f"{result['unguarded_ms']:.0f} ms + {result['added_ms']:.0f} ms for the guard"
    table.add_row("how", f"[bold {color}]{how(result)}[/]; scores: {scores}; {times}")
    out.print(table)


def chat(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[
        list[str] | None, typer.Option(help="A picture: file, URL or data URI.")
    ] = None,
    policy: PolicyName = "balanced",
    model: ModelName = "embedded",
    served: Served = "default",
    max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 256,
    as_json: Json = False,
) -> None:
    """Ask one question, about pictures or not; the answer is guarded."""
    parts = [{"type": "image", "image": name} for name in image or []]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    with busy("answering"), opened(model, served=served) as answering:
        guarded = wrap(answering, policy=policy).chat(
            messages, max_tokens=max_tokens, temperature=0
        )
    if as_json:
        show(record(guarded, texts=True))
    else:
        show_answer(guarded)
    raise typer.Exit(int(guarded.action == "block"))


def show_answer(guarded: Guarded) -> None:
    out.print(escape(guarded.text), soft_wrap=True)
    eyes = ", without the picture" if guarded.closed else ""
    seen = f"{guarded.coverage.chars}/{guarded.coverage.chars_total} characters checked"
    err.print(f"[dim]{guarded.action} by {guarded.policy}: {guarded.step}{eyes}; {seen}[/]")
