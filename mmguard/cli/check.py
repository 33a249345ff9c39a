"""`mmguard check`: score a request, an answer, or every row of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from mmguard import rows
from mmguard.bundles import load_detector
from mmguard.cli.console import Json, err, out, show
from mmguard.errors import InputError
from mmguard.types import Detector


def check(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL rows: id, prompt, response, image.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="A request to score.")] = None,
    response: Annotated[str | None, typer.Option(help="The answer to it.")] = None,
    detector: Annotated[str, typer.Option(help="Name or folder.")] = "response-harm",
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
