"""The report of `mmguard eval repairs` as Markdown tables, and what to keep in mind with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OPINIONS = ("second opinion", "all drafts", "flagged drafts", "mended answers", "all that left")
COSTS = ("cost to drafts alone", "time", "tokens generated", "tokens of prompts", "calls")


def render(made: Mapping[str, Any]) -> str:
    """The report as Markdown tables and what to keep in mind when reading them."""
    steps = [f"mended by {step}" for step in made["steps"]]
    head = ("requests", "rows", "flagged", *steps, "still refused", "answers changed")
    tables = [
        table(head, [fates(kind, own) for kind, own in made["kinds"].items()]),
        table(OPINIONS, [opinions(kind, own) for kind, own in made["kinds"].items()]),
        table(COSTS, [spending(kind, own["cost"]) for kind, own in made["kinds"].items()]),
    ]
    return "\n\n".join([*tables, *notes(made)])


def fates(kind: str, own: Mapping[str, Any]) -> list[str]:
    mended = [spell(found) for found in own["mended"].values()]
    flagged, blocked, changed = (spell(own[name]) for name in ("flagged", "blocked", "changed"))
    return [kind, str(own["rows"]), flagged, *mended, blocked, changed]


def opinions(kind: str, own: Mapping[str, Any]) -> list[str]:
    return [kind, *(spell(found) for found in own["opinion"].values())]


def spending(kind: str, found: Mapping[str, Any]) -> list[str]:
    ratios = [times(found[name]) for name in ("seconds", "generated", "prompt")]
    return [kind, *ratios, f"{found['calls']:.2f}"]


def spell(found: Mapping[str, Any]) -> str:
    """`3 of 12 (25 %, 5 to 57)`."""
    told = f"{found['hits']} of {found['count']}"
    if found["value"] is None:
        return told
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{told} ({value:.0f} %, {low:.0f} to {high:.0f})"


def times(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def notes(made: Mapping[str, Any]) -> list[str]:
    setup, judge = made["setup"], made["judge"]
    source = (
        "the data's (an oracle: meta.image_desc, or the words in the picture)"
        if setup["captions"] == "oracle"
        else "the model's own"
    )
    told = [
        f"Model `{made['model']}`, policy `{made['policy']}`, descriptions {source}, seed"
        f" {setup['seed']}; in brackets 95 % intervals, exact for shares, bootstrap for ratios."
        " A request is harmful or harmless by its label, whatever the model made of it.",
        "Flagged and mended are verdicts of the policy's own detectors"
        f" ({', '.join(made['detectors']) or 'the judge'}), and a mended answer has passed them:"
        f" that is circular. The second opinion is `{judge['name']}` at {judge['threshold']:.3g},"
        " which errs too.",
    ]
    if judge["name"] in made["detectors"]:
        told.append("The second opinion is one of the policy's detectors: it is none.")
    if made["undescribed"]:
        told.append(f"{made['undescribed']} rows without a description were left out.")
    if made["errors"]:
        first = made["errors"][0]
        told.append(
            f"{len(made['errors'])} rows met an error, first {first['id']}: {first['error']}"
        )
    return told
