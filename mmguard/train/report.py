"""The card of an encoder bundle, from what was read and measured; notes by hand are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmguard.train.card import row
from mmguard.train.mix import LEFT_OUT, Row

ABOUT = """# {name}

A BERT encoder of {layers} layers over a request and its answer, in eight bits on ONNX Runtime. One pass
gives p(answer is harmful), p(request is harmful), p(answer is a refusal) and a score for each hazard of
MLCommons' list. Long requests keep both ends; long answers are read in windows of {window} tokens, and the
worst counts. {beside}Made by `mmguard train encoder` from the base `{base}`.

## Training data and licences

| source | rows | licence |
|---|---|---|
{sources}

Besides: what is made of these rows by rule; harmless answers that alarm, written for mmguard (Apache-2.0);
and a few more of those that SmolLM2-135M-Instruct wrote (Apache-2.0).

Thresholds and probabilities were set on one half of the dev rows, by prompt; "unseen" is the other half.

"""


BESIDE = """A linear model over hashed words reads each window too, as `response-harm-linear` reads a
whole answer; its share of the logit is {share}. """


def describe(name: str, about: Mapping[str, Any], result: Mapping[str, Any], notes: str) -> str:
    """The card: what it is, what it learnt from, the notes, how it measured (`eval.json`)."""
    beside = BESIDE.format(**about) if about["share"] else ""
    head = ABOUT.format(name=name, beside=beside, **about)
    return "\n".join([head, notes, *measured(result)]) + "\n"


def tally(rows: Sequence[Row]) -> str:
    """A table line for each source and licence."""
    kept = [row for row in rows if row.get("source") not in LEFT_OUT]
    counts = Counter((str(r.get("source", "")), str(r.get("license", "not stated"))) for r in kept)
    return "\n".join(
        f"| {source} | {count} | {licence} |" for (source, licence), count in sorted(counts.items())
    )


def measured(result: Mapping[str, Any]) -> list[str]:
    lines = ["## Measured on dev\n"]
    for side in ("answer", "unseen", "request"):
        lines += table(side, result[side], result["thresholds"], result["promises"])
    lines += benign(result) + aside(result)
    return lines


def table(
    side: str,
    found: Mapping[str, Any],
    thresholds: Mapping[str, float],
    promises: Mapping[str, float],
) -> list[str]:
    head = {"answer": "Answers", "unseen": "Answers, unseen half", "request": "Requests"}[side]
    told = f"{found['rows']} rows, {found['harmful']} harmful, AUROC {found['auroc']}"
    return [
        f"{head}: {told}, expected calibration error {found['ece']}.\n",
        "| strictness | threshold | F1 | recall | false alarms |",
        "|---|---|---|---|---|",
        *(row(word, thresholds[word], found[word]) for word in thresholds),
        "",
        *(
            [f"Promised false alarms: {', '.join(f'{w} {p:.1%}' for w, p in promises.items())}.\n"]
            if side == "unseen"
            else []
        ),
    ]


def benign(result: Mapping[str, Any]) -> list[str]:
    sources = result["answer"]["sources"]
    return [
        "| source, answers, at medium | rows | harmful | flagged | F1 |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {s['rows']} | {s['harmful']} | {s['flagged']:.3f} | {s['f1']:.3f} |"
            for name, s in sources.items()
        ),
        "",
    ]


def aside(result: Mapping[str, Any]) -> list[str]:
    streams, refusal = result["streams"], result["refusal"]
    names = ", ".join(f"{name} {h['auroc']:.2f}" for name, h in result["hazards"].items())
    return [
        f"Streams, checked every 20 words at medium: of {streams['harmful']} harmful answers"
        f" {streams['caught']:.1%} raise the alarm, at the median after {streams['median_share']:.0%}"
        f" of the answer; of {streams['harmless']} harmless ones {streams['false_alarms_any_prefix']:.1%}"
        f" do at any prefix, {streams['false_alarms_whole']:.1%} when whole.\n",
        f"Refusals: F1 {refusal['f1']} on {refusal['rows']} rows. Hazards against one another,"
        f" AUROC on harmful answers: {names or 'too few rows'}.",
    ]
