"""What every command says and how: tables, JSON, a spinner, the options they share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PolicyName = Annotated[str, typer.Option("--policy", help="A preset or a policy file.")]
ModelName = Annotated[
    str, typer.Option("--model", help="embedded, a server's URL, or a HuggingFace folder or name.")
]
Served = Annotated[str, typer.Option(help="Behind a URL: the model to ask for.")]


def show(value: Any) -> None:
    """JSON for programs: one value, never wrapped or coloured."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def tabulate(title: str, columns: Iterable[str], lines: Iterable[Iterable[Any]]) -> None:
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for line in lines:
        table.add_row(*(escape(str(cell)) for cell in line))
    out.print(table)


def show_figures(title: str, figures: dict[str, float], as_json: bool) -> None:
    if as_json:
        show(figures)
    else:
        tabulate(title, ("figure", "value"), ((k, f"{v:.2f}") for k, v in figures.items()))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A spinner on a terminal, and silence in a pipe."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        yield


def clip(text: str, limit: int = 420) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " ..."
