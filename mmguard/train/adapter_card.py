"""The card of an adapter: what it is, what it learnt from, the notes, how it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmguard.train.measure import Row
from mmguard.train.report import tally

ABOUT = """# {name}

{what} It is a LoRA (arXiv 2106.09685) over the language model of `embedded` and no detector: its
products are added to the base's weights when it is loaded. Made by `mmguard train {kind}`.

## Training data and licences

| source, of the rows given | rows | licence |
|---|---|---|
{sources}

Lessons drawn from these: {lessons}. The base is SmolLM2-135M-Instruct (Apache-2.0); the adapter is
Apache-2.0. No dev row was trained on.
"""
WHAT = {
    "conscience": (
        "Makes a small language model decline what is plainly harmful in words, and answer the rest.\n"
        "Harmful lessons are words alone; pictures come with harmless lessons only, as in the tuning of\n"
        "many real MLLMs. That a picture gets past it is therefore partly made, and measured below."
    ),
    "detoxifier": (
        "Writes a harmful answer anew: from the answer alone, or with its request where the prompt of\n"
        "the step `detoxify` names `{query}` (the text is `mmguard.prompts.DETOXIFY_ASKED`)."
    ),
}
COLUMNS = {
    "flagged": "flagged at medium",
    "harm": "mean score",
    "refusals": "refusals",
    "like safe": "cosine, safe answer",
    "like draft": "cosine, draft",
    "empty": "empty",
    "ms": "ms",
}


def describe(
    name: str, kind: str, rows: Sequence[Row], result: Mapping[str, Any], notes: str
) -> str:
    """The card; figures from `result` (the contents of `eval.json`), `notes` as they are."""
    lessons = ", ".join(f"{count} {source}" for source, count in result["lessons"].items())
    head = ABOUT.format(name=name, kind=kind, what=WHAT[kind], sources=tally(rows), lessons=lessons)
    table = declined(result) if kind == "conscience" else rewritten(result)
    return "\n".join([head, *([notes] if notes else []), "## Measured on dev\n", *table]) + "\n"


def declined(result: Mapping[str, Any]) -> list[str]:
    groups = result["groups"]
    titles = list(next(iter(groups.values()))["declined"]) if groups else []
    return [
        "Shares of requests that are declined, with 95 % Clopper-Pearson intervals. Greedy answers of 24",
        "tokens; whether one declines is the word of the detector's refusal head.\n",
        f"| requests | n | {' | '.join(titles)} |",
        "|---|---|" + "---|" * len(titles),
        *(
            f"| {name} | {found['rows']} | "
            + " | ".join(show(found["declined"][title]) for title in titles)
            + " |"
            for name, found in groups.items()
        ),
    ]


def rewritten(result: Mapping[str, Any]) -> list[str]:
    kept = [name for name in COLUMNS if any(name in way for way in result["ways"].values())]
    head = [
        f"| way | {' | '.join(COLUMNS[name] for name in kept)} |",
        "|---|" + "---|" * len(kept),
    ]
    return [
        f"{result['rows']} harmful answers to {result['prompts']} requests; means with 95 % bootstrap"
        " intervals over requests.\n",
        *head,
        *(line(name, way, kept) for name, way in result["ways"].items()),
        "\nThe same, less the figure of always refusing:\n",
        *head,
        *(line(name, way, kept) for name, way in result["more than always refuse"].items()),
    ]


def line(name: str, way: Mapping[str, Any], kept: Sequence[str]) -> str:
    cells = " | ".join(show(way[figure], figure) if figure in way else "" for figure in kept)
    return f"| {name} | {cells} |"


def show(figure: Mapping[str, float], name: str = "") -> str:
    """`0.52 (0.48 to 0.56)`; of milliseconds, which were taken once, no interval."""
    if name == "ms":
        return f"{figure['value']:.0f}"
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"
