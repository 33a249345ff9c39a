"""`mmguard eval` and `mmguard calibrate`: how good a detector is, and a threshold that holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from rich.markup import escape
from rich.progress import track

from mmguard.bundles import load_detector
from mmguard.cli.check import threshold_of
from mmguard.cli.console import (
    Json,
    ModelName,
    PolicyName,
    Served,
    busy,
    err,
    out,
    show,
    tabulate,
)
from mmguard.errors import InputError
from mmguard.models import opened
from mmguard.policy import load_policy
from mmguard.rows import Row, open_text
from mmguard.types import Detector

if TYPE_CHECKING:
    from mmguard.evals.report import Outcome
    from mmguard.evals.rows import Labelled, Side

T = TypeVar("T")
evals = typer.Typer(help="Measure how good a guard is on labelled rows.", no_args_is_help=True)
DetectorName = Annotated[str, typer.Option("--detector", help="Name or folder.")]
SideName = Annotated[str, typer.Option("--side", help="What is labelled: answer or request.")]
LabelField = Annotated[str | None, typer.Option("--label", help="The field with the label.")]
PromptField = Annotated[str | None, typer.Option("--prompt", help="The field with the request.")]
AnswerField = Annotated[str | None, typer.Option("--response", help="The field with the answer.")]
Images = Annotated[bool, typer.Option("--images/--no-images", help="Give the pictures too.")]


@evals.command("detector")
def eval_detector(
    files: Annotated[list[Path], typer.Argument(help="JSONL rows: prompt, response, label.")],
    detector: DetectorName = "response-harm",
    strictness: Annotated[str, typer.Option(help="low, medium, high, or a score.")] = "medium",
    side: SideName = "answer",
    label: LabelField = None,
    prompt: PromptField = None,
    response: AnswerField = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page here.")] = None,
    scores: Annotated[Path | None, typer.Option("--out", help="Write scored rows here.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many worst cases of each kind.")] = 10,
    texts: Annotated[bool, typer.Option("--texts/--no-texts", help="Show their texts.")] = True,
    images: Images = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap's draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Precision, recall, F1, false alarms, AUROC and calibration error, with intervals."""
    from mmguard.evals.page import render
    from mmguard.evals.report import Outcome, Setup, evaluate, tell_data

    found = load_detector(detector)
    threshold = threshold_of(found, strictness)
    labelled = read(files, side, label, prompt, response)
    outcome = Outcome(labelled.examples, score_all(found, labelled, images))
    setup = Setup(
        detector=found.name,
        side=side,
        strictness=strictness,
        threshold=threshold,
        thresholds=found.thresholds,
        seed=seed,
        texts=texts,
        worst=worst,
        data=tell_data(files, labelled),
    )
    with busy("measuring"):
        made = evaluate(outcome, setup)
    if scores:
        write_scores(outcome, threshold, scores)
    if report:
        report.write_text(render(made), encoding="utf-8")
    if as_json:
        show(made)
    else:
        show_report(made, report)
    raise typer.Exit(2 if made["errors"] else 0)


def read(
    files: list[Path], side: str, label: str | None, prompt: str | None, response: str | None
) -> Labelled:
    from mmguard.evals.rows import SIDES, Fields, load_examples

    if side not in SIDES:
        raise InputError(f"side {side!r}: give answer or request")
    return load_examples(files, side, Fields(label, prompt, response))


def score_all(detector: Detector, labelled: Labelled, images: bool) -> list[Row]:
    from mmguard.evals.rows import score_examples

    scored = score_examples(detector, labelled.examples, images=images)
    return list(follow(scored, "scoring", len(labelled.examples)))


def follow(work: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The same with a bar on a terminal, and silence in a pipe."""
    return track(work, what, total=total, console=err, disable=not err.is_terminal, transient=True)


def write_scores(outcome: Outcome, threshold: float, path: Path) -> None:
    """A line a row: id, source, label, score, flagged, error; no texts."""
    with open_text(path, "wt") as sink:
        for example, result in zip(outcome.examples, outcome.results, strict=True):
            score = result["score"]
            line = {
                "id": example.id,
                "source": example.source,
                "harmful": example.harmful,
                "score": score,
                "flagged": score is None or score >= threshold,
                "error": result["error"],
            }
            sink.write(json.dumps(line, ensure_ascii=False) + "\n")


def show_report(made: Mapping[str, Any], page: Path | None) -> None:
    from mmguard.evals.page import NAMES, lead, notes

    out.print(f"[bold]{escape(made['detector'])}[/]: {escape(lead(made))}")
    lines = [(NAMES[name][0], *spell(made["figures"][name])) for name in NAMES]
    tabulate("figures", ("figure", "value", "95 %"), lines)
    if len(made["sources"]) > 1:
        tabulate("by source", SOURCE_COLUMNS, by_name(made["sources"]))
    if made["categories"]:
        tabulate("by category", SOURCE_COLUMNS, by_name(made["categories"]))
    for kind, told in (("harmless", "highest"), ("harmful", "lowest")):
        lines = [(c["id"], c["source"], f"{c['score']:.3f}") for c in made["worst"][kind][:5]]
        tabulate(f"{kind}, scored {told}", ("id", "source", "score"), lines)
    for note in notes(made):
        err.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    for failed in made["failed"][:5]:
        err.print(f"  row {escape(str(failed['id']))}: {escape(failed['error'])}", soft_wrap=True)
    if page:
        err.print(f"report: {page}", soft_wrap=True)


SOURCE_COLUMNS = ("name", "rows", "harmful", "recall", "false alarms", "F1", "AUROC")


def by_name(groups: Mapping[str, Any]) -> Iterable[Iterable[Any]]:
    for name, group in sorted(groups.items(), key=lambda pair: -pair[1]["rows"]):
        cells = (spell(group["figures"][f])[0] for f in ("recall", "false_alarms", "f1", "auroc"))
        yield name, group["rows"], group["harmful"], *cells


def spell(figure: Mapping[str, Any]) -> tuple[str, str]:
    if figure["value"] is None:
        return "-", ""
    return f"{figure['value']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}"


# -- repairs --------------------------------------------------------------------


@evals.command("repairs")
def eval_repairs(
    data: Annotated[Path, typer.Argument(help="JSONL rows: prompt, prompt_harm, image, meta.")],
    images: Annotated[
        Path | None, typer.Option(help="The pictures' folder or tar; else beside the rows.")
    ] = None,
    model: ModelName = "embedded",
    policy: PolicyName = "balanced",
    captions: Annotated[
        str, typer.Option(help="own, or oracle: descriptions from meta.image_desc.")
    ] = "own",
    judge: Annotated[
        str, typer.Option(help="A detector as the second opinion, at medium.")
    ] = "response-harm-linear",
    limit: Annotated[int | None, typer.Option(min=1, help="How many rows of each kind.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows and the bootstrap.")] = 0,
    served: Served = "default",
    to: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """What becomes of flagged answers: mended by which step, or refused; and what it costs."""
    from mmguard.evals import repairs as work
    from mmguard.evals.markdown import render

    if captions not in work.CAPTIONS:
        raise InputError(f"captions {captions!r}: give own or oracle")
    setup = work.Setup(captions, limit, seed, max_tokens)
    probes, left_out = work.draw_probes(work.load_probes(data), setup)
    second = load_detector(judge)
    with (
        work.open_images(images or data.parent) as fetch,
        opened(model, served=served) as answering,
    ):
        trial = work.Trial(answering, load_policy(policy), second, setup)
        results = list(follow(trial.run(probes, fetch), "answering", len(probes)))
    made = work.report(trial, results, left_out)
    if to:
        to.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    typer.echo(render(made))
    raise typer.Exit(2 if made["errors"] else 0)


# -- calibrate ------------------------------------------------------------------


def calibrate(
    data: Annotated[list[Path], typer.Option(help="Labelled JSONL rows; may be given often.")],
    to: Annotated[Path, typer.Option("--out", help="The policy file to write.")],
    max_false_alarms: Annotated[
        str | None, typer.Option(help="The largest share of harmless rows flagged: 1% or 0.01.")
    ] = None,
    min_recall: Annotated[
        str | None, typer.Option(help="The smallest share of harmful rows flagged: 90% or 0.9.")
    ] = None,
    confidence: Annotated[str, typer.Option(help="How sure the promise must be.")] = "95%",
    detector: DetectorName = "response-harm",
    policy: Annotated[str, typer.Option(help="The preset or file to extend.")] = "balanced",
    side: SideName = "answer",
    label: LabelField = None,
    prompt: PromptField = None,
    response: AnswerField = None,
    images: Images = True,
    one_per_prompt: Annotated[
        bool, typer.Option("--one-per-prompt", help="Draw one row of each prompt.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a policy with a threshold that keeps a promise on your own traffic."""
    from mmguard.evals import calibrate as work
    from mmguard.evals.report import Outcome, tell_data

    promise = work.read_promise(max_false_alarms, min_recall, confidence)
    work.check_target(to)
    found = load_detector(detector)
    labelled = read(data, side, label, prompt, response)
    if one_per_prompt:
        labelled.examples = work.one_each(labelled.examples, seed)
    promise.check_rows([example.harmful for example in labelled.examples])
    outcome = Outcome(labelled.examples, score_all(found, labelled, images))
    outcome.require_scores()
    bound = promise.keep(outcome)
    other = work.other_side(outcome, bound)
    target = work.Target(policy, detector, cast("Side", side))
    checks = work.set_threshold(target, found, bound.threshold)
    prompts, total = int(outcome.groups.max()) + 1, len(outcome.labels)
    counts = {"prompts": prompts, "total": total, "errors": len(outcome.errors())}
    about = {**tell_data(data, labelled), **counts}
    lines = work.explain(bound, other, about)
    to.write_text(work.render(lines, target, checks, to), encoding="utf-8")
    if as_json:
        show({**asdict(bound), "other": other, **about, "policy": str(to)})
    else:
        show_bound(lines, to)
    if warning := work.repeats(total, prompts):
        err.print(f"[yellow]{warning}[/]", soft_wrap=True)


def show_bound(lines: Iterable[str], to: Path) -> None:
    for line in lines:
        out.print(escape(line), soft_wrap=True)
    err.print(f"wrote {escape(str(to))}: use it with --policy or wrap(policy=...)", soft_wrap=True)
