"""The command line: the only place that prints or exits.

Exit codes: 0 nothing harmful, 1 something harmful was found or withheld, 2 an error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, track
from rich.table import Table

from mmguard import rows
from mmguard.bundles import Bundle, load_bundle, load_detector, shipped
from mmguard.errors import InputError, MmguardError
from mmguard.models import opened
from mmguard.policy import load_policy, presets, schema
from mmguard.record import record
from mmguard.types import Detector, Guarded
from mmguard.wrap import wrap

T = TypeVar("T")
QUIET = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(help="Safety middleware for multimodal language models.", **QUIET)  # type: ignore[arg-type]  # bools
policies = typer.Typer(help="List the policies, or show one.", no_args_is_help=False)
train = typer.Typer(help="Make a detector from data.", no_args_is_help=True)
bench = typer.Typer(help="Measure what mmguard costs.", no_args_is_help=True)
app.add_typer(policies, name="policies")
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PolicyName = Annotated[str, typer.Option("--policy", help="A preset or a policy file.")]
ModelName = Annotated[
    str, typer.Option("--model", help="embedded, a server's URL, or a HuggingFace folder or name.")
]
Served = Annotated[str, typer.Option(help="Behind a URL: the model to ask for.")]


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


def show(value: Any) -> None:
    """JSON for programs: one value, never wrapped or coloured."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def tabulate(title: str, columns: Iterable[str], lines: Iterable[Iterable[Any]]) -> None:
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for line in lines:
        table.add_row(*(escape(str(cell)) for cell in line))
    out.print(table)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A spinner on a terminal, and silence in a pipe."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        yield


@app.command()
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


def clip(text: str, limit: int = 420) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " ..."


@app.command()
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


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL rows: id, prompt, response, image.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="A request to score.")] = None,
    response: Annotated[str | None, typer.Option(help="The answer to it.")] = None,
    detector: Annotated[str, typer.Option(help="Name or folder.")] = "response-harm-linear",
    strictness: Annotated[str, typer.Option(help="low, medium, high, or a score.")] = "medium",
    scores: Annotated[Path | None, typer.Option("--out", help="Write scored rows here.")] = None,
    as_json: Json = False,
) -> None:
    """Score a request, an answer, or every row of a file."""
    found = load_detector(detector)
    threshold = threshold_of(found, strictness)
    if file is None:
        if prompt is None and response is None:
            raise InputError("nothing to score: give a FILE, --prompt or --response")
        lines = rows.score_rows(found, [{"prompt": prompt, "response": response}], Path())
        report_one(next(lines), threshold, as_json)
    elif prompt is not None or response is not None:
        raise InputError("give a FILE or --prompt and --response, not both")
    else:
        report_file(found, file, scores, threshold, as_json)


def threshold_of(detector: Detector, strictness: str) -> float:
    if strictness in detector.thresholds:
        return detector.thresholds[strictness]
    try:
        return float(strictness)
    except ValueError:
        known = ", ".join(detector.thresholds) or "none"
        raise InputError(
            f"strictness {strictness!r}: give a score from 0 to 1 or a word: {known}"
        ) from None


def report_one(line: rows.Row, threshold: float, as_json: bool) -> None:
    if line["error"]:
        raise InputError(line["error"])
    harmful = line["score"] >= threshold
    if as_json:
        show({**line, "threshold": threshold, "harmful": harmful})
    else:
        word = "[red]harmful[/]" if harmful else "[green]safe[/]"
        out.print(f"{word}  score {line['score']:.3f}, threshold {threshold:.3f}")
    raise typer.Exit(int(harmful))


def report_file(
    detector: Detector, file: Path, scores: Path | None, threshold: float, as_json: bool
) -> None:
    counts = {"rows": 0, "harmful": 0, "errors": 0}
    with (
        rows.open_text(scores, "wt") if scores else open(os.devnull, "w", encoding="utf-8")
    ) as sink:
        for line in track(
            rows.score_rows(detector, rows.read_rows(file), file.parent),
            "scoring",
            total=rows.count_rows(file),
            console=err,
            disable=not err.is_terminal,
        ):
            counts["rows"] += 1
            counts["errors"] += line["error"] is not None
            counts["harmful"] += line["error"] is None and line["score"] >= threshold
            text = json.dumps(line, ensure_ascii=False)
            sink.write(text + "\n")
            if scores is None:
                typer.echo(text)
    summary = {**counts, "threshold": threshold, "detector": detector.name}
    if as_json and scores:
        show(summary)
    else:
        told = f"{counts['rows']} rows, {counts['harmful']} harmful, {counts['errors']} with errors"
        err.print(f"{told} (threshold {threshold:.3f})")
    raise typer.Exit(2 if counts["errors"] else int(counts["harmful"] > 0))


@policies.callback(invoke_without_command=True)
def list_policies(context: typer.Context, as_json: Json = False) -> None:
    """List the policies that came with mmguard, or show one."""
    if context.invoked_subcommand:
        return
    loaded = [load_policy(name) for name in presets()]
    if as_json:
        show([{"name": p.name, "tag": p.tag, "description": p.description} for p in loaded])
    else:
        tabulate("policies", ("name", "what it does"), ((p.name, p.description) for p in loaded))


@policies.command("show")
def show_policy(name: str, as_json: Json = False) -> None:
    """Print a policy with all that it extends and every default filled in."""
    policy = load_policy(name)
    resolved = policy.model_dump(mode="json")
    if as_json:
        show({**resolved, "tag": policy.tag})
    else:
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=96)
        typer.echo(f"# {policy.tag}\n{text}", nl=False)


@policies.command("schema")
def show_schema() -> None:
    """Print the JSON schema of policy files."""
    typer.echo(json.dumps(schema(), indent=2))


@app.command()
def detectors(as_json: Json = False) -> None:
    """List the detectors that can be named in a policy."""
    from mmguard import registry

    bundles = [load_bundle(name) for name in shipped()]
    plugins = [{"name": name, "plugin": True} for name in registry.names("detectors")]
    if as_json:
        show([*(dict(bundle.manifest) for bundle in bundles), *plugins])
        return
    lines = [describe(bundle) for bundle in bundles]
    lines += [(plugin["name"], "plugin", "", "") for plugin in plugins]
    tabulate("detectors", ("name", "version", "low / medium / high", "what it does"), lines)


def describe(bundle: Bundle) -> tuple[Any, ...]:
    words = " / ".join(
        f"{bundle.thresholds[w]:.2f}" for w in ("low", "medium", "high") if w in bundle.thresholds
    )
    return bundle.name, bundle.manifest.version, words, bundle.manifest.description


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


def show_figures(title: str, figures: dict[str, float], as_json: bool) -> None:
    if as_json:
        show(figures)
    else:
        tabulate(title, ("figure", "value"), ((k, f"{v:.2f}") for k, v in figures.items()))
