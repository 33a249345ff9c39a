"""The command line: the only place that prints or exits.

Exit codes: 0 nothing harmful, 1 something harmful was found or withheld, 2 an error.
"""

from __future__ import annotations

import os
import sys

import typer
from rich.markup import escape

from mmguard.cli import (
    audit,
    bench,
    chat,
    check,
    evals,
    explain,
    generate,
    lists,
    serve,
    streams,
    train,
)
from mmguard.cli.console import err
from mmguard.errors import MmguardError

QUIET = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(help="Safety middleware for multimodal language models.", **QUIET)  # type: ignore[arg-type]  # bools
for command in (chat.demo, chat.chat, check.check, lists.detectors, evals.calibrate, serve.serve):
    app.command()(command)
app.command()(audit.audit)
evals.evals.command()(streams.streams)
lists.policies.command()(explain.explain)
app.add_typer(lists.policies, name="policies")
app.add_typer(train.train, name="train")
app.add_typer(bench.bench, name="bench")
app.add_typer(evals.evals, name="eval")
app.add_typer(generate.jobs, name="generate")


def main() -> None:
    """Run the command line; a failure is one line on standard error, and exit code 2."""
    try:
        app()
    except Exception as exc:
        if os.environ.get("MMGUARD_DEBUG"):
            raise
        known = isinstance(exc, MmguardError)
        text = str(exc) if known else f"{type(exc).__name__}: {exc} (MMGUARD_DEBUG=1 shows where)"
        err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
        sys.exit(2)
