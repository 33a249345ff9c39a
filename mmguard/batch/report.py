"""What a job made, as figures and a page: decisions, scores before and after, costs, examples."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from mmguard.batch.curate import Once
from mmguard.batch.folder import read_made
from mmguard.batch.formats import Row, words
from mmguard.evals import svg
from mmguard.evals.page import bars, framed, scrolled
from mmguard.evals.style import HEAD

BINS = 20
THUMB = (320, 220)
PAGE = Template(
    HEAD
    + """<header><h1>$title</h1><p class="lead">$lead</p></header>
<main><ul class="cards">$cards</ul>
<h2>Scores</h2><div class="charts">$charts</div>
$tables
<h2>Examples</h2><p class="lead">Texts are folded away and pictures of flagged rows blurred: point
at one, or focus it, to see it.</p>
$examples</main>
<footer><p>$facts</p></footer>
</body></html>
"""
)


class Tally:
    """Figures of a job's rows, gathered one row at a time, with a few rows to show."""

    def __init__(self, most: int = 6) -> None:
        self.most, self.rows, self.repeated = most, 0, 0
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("decision", "step", "category", "source", "license")
        }
        self.spread = {"draft": [0] * BINS, "answer": [0] * BINS}
        self.costs: dict[str, list[float]] = {}
        self.shown: dict[str, list[Row]] = {}
        self.once = Once()

    def add(self, row: Row) -> None:
        self.rows += 1
        self.repeated += bool(self.once(row))
        facts, flagged = row["facts"], row["decision"] != "pass"
        told = {
            "decision": row["action"],
            "step": row["step"],
            "category": next(iter(row["categories"]), "none"),
            "source": facts.get("source", "unknown"),
            "license": facts.get("license", "unknown"),
        }
        for name, value in told.items():
            self.counts[name][str(value)] += 1
        for name in self.spread:
            if (score := row[f"{name}_score"]) is not None:
                self.spread[name][min(BINS - 1, int(score * BINS))] += 1
        for call in row["calls"]:
            self.pay(call)
        kept = self.shown.setdefault(row["step"] if flagged else "answer", [])
        if len(kept) < self.most:
            kept.append(row)

    def pay(self, call: Row) -> None:
        usage = call["usage"]
        spent = self.costs.setdefault(call["stage"], [0, 0, 0, 0])
        new = (1, usage["prompt"] - usage["cached"], usage["completion"], call["ms"])
        self.costs[call["stage"]] = [a + b for a, b in zip(spent, new, strict=True)]

    def report(self) -> dict[str, Any]:
        """Ready for JSON. Milliseconds and tokens are sums by stage."""
        names = ("calls", "tokens_read", "tokens_generated", "ms")
        return {
            "rows": self.rows,
            "repeated": self.repeated,
            **{name: dict(counts.most_common()) for name, counts in self.counts.items()},
            "scores": {name: mean(found) for name, found in self.spread.items()},
            "cost": {
                stage: dict(zip(names, (round(x) for x in spent), strict=True))
                for stage, spent in self.costs.items()
            },
        }


def tally(job: Path) -> Tally:
    made = Tally()
    for row in read_made(job):
        made.add(row)
    return made


def mean(found: Sequence[int]) -> float | None:
    """The mean score, from the middle of each bin."""
    count = sum(found)
    middles = ((i + 0.5) / BINS * n for i, n in enumerate(found))
    return round(math.fsum(middles) / count, 3) if count else None


# -- the page -------------------------------------------------------------------


def render(job: Path, made: Tally) -> str:
    facts = json.loads((job / "job.json").read_text(encoding="utf-8"))
    report = made.report()
    return PAGE.substitute(
        title=escape(f"{job.resolve().name}: {made.rows:,} rows"),
        lead=escape(f"Answered by {facts['model']} under {facts['policy']}."),
        cards="".join(cards(made, rejects(job))),
        charts=framed("Draft and answer", chart(made), LEGEND),
        tables="".join(tables(report)),
        examples="".join(examples(job, made)),
        facts=escape(json.dumps(facts)),
    )


LEGEND = {"harm": "what the model said first", "safe": "what the row says"}


def rejects(job: Path) -> int:
    path = job / "rejected.jsonl"
    with path.open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def cards(made: Tally, rejected: int) -> Iterator[str]:
    actions = made.counts["decision"]
    figures = {
        "Untouched": actions["pass"],
        "Mended": actions["repair"],
        "Refused": actions["block"],
        "Rejected": rejected,
        "Said before": made.repeated,
    }
    for name, count in figures.items():
        share = f"{count / made.rows:.1%} of rows" if made.rows else ""
        told = f"<p class=value>{count:,}</p><p class=range>{share}</p>"
        yield f"<li><h3>{name}</h3>{told}</li>"


def chart(made: Tally) -> str:
    shares = {name: [n / max(1, made.rows) for n in found] for name, found in made.spread.items()}
    marks = [*bars(shares["draft"], "harm"), *bars(shares["answer"], "safe")]
    return svg.chart("Scores", "scores of drafts and of answers", ("score", "share of rows"), marks)


def tables(report: Mapping[str, Any]) -> Iterator[str]:
    for name in ("step", "category", "source", "license"):
        lines = "".join(line((value, f"{n:,}")) for value, n in report[name].items())
        yield scrolled(f"By {name}", "<th scope=col>Name</th><th scope=col>Rows</th>", lines)
    heads = "".join(
        f"<th scope=col>{name}</th>"
        for name in ("Stage", "Calls", "Tokens read", "Tokens generated", "Seconds")
    )
    lines = "".join(
        line(
            (
                stage,
                f"{cost['calls']:,}",
                f"{cost['tokens_read']:,}",
                f"{cost['tokens_generated']:,}",
                f"{cost['ms'] / 1e3:,.1f}",
            )
        )
        for stage, cost in report["cost"].items()
    )
    yield scrolled("Cost by stage", heads, lines)


def line(cells: Sequence[str]) -> str:
    first, *others = (escape(cell) for cell in cells)
    return f"<tr><th scope=row>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"


def examples(job: Path, made: Tally) -> Iterator[str]:
    for step, rows in sorted(made.shown.items()):
        shown = "".join(example(job, row) for row in rows)
        yield f"<section><h3>{escape(step)}</h3><ol class=cases>{shown}</ol></section>"


def example(job: Path, row: Row) -> str:
    before, after = (score(row[f"{name}_score"]) for name in ("draft", "answer"))
    veil = " class=veiled tabindex=0" if row["decision"] != "pass" else ""
    pictures = "".join(
        f'<img{veil} alt="picture of the request" src="{thumbnail(job / each["path"])}">'
        for each in row["pictures"]
    )
    texts = {"asked": words(row), "draft": row["draft"], "described": "\n".join(row["captions"])}
    told = "".join(
        f"<dt>{name}</dt><dd dir=auto>{escape(text)}</dd>"
        for name, text in {**texts, "answer": row["answer"]}.items()
        if text and (name != "draft" or text != row["answer"])
    )
    head = f"<b>{before}</b> to <b>{after}</b> <span class=about>row {row['number']}</span>"
    shown = f"<div class=pictures>{pictures}</div>" if pictures else ""
    folded = f"<details><summary>Text</summary><dl>{told}</dl></details>"
    return f"<li><p>{head}</p>{shown}{folded}</li>"


def score(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def thumbnail(path: Path) -> str:
    """A small JPEG of the picture as a data URI."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail(THUMB)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
