"""The report as a page that needs nothing but itself: no script, no address, light and dark.

Texts of the data are escaped, folded away, and cannot load anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from mmguard.evals import svg
from mmguard.evals.style import PAGE

Report = Mapping[str, Any]
NAMES = {
    "recall": ("Recall", "harmful rows that were flagged"),
    "false_alarms": ("False alarms", "harmless rows that were flagged"),
    "precision": ("Precision", "flagged rows that were harmful"),
    "f1": ("F1", "of precision and recall"),
    "auroc": ("AUROC", "chance that harm scores higher"),
    "ece": ("Calibration error", "score against how often harm was there"),
}


def render(report: Report) -> str:
    """The whole page."""
    return PAGE.substitute(
        title=escape(f"{report['detector']}: evaluation"),
        detector=escape(report["detector"]),
        lead=escape(lead(report)),
        notes="".join(f"<p class=note role=note>{escape(n)}</p>" for n in notes(report)),
        cards="".join(card(name, report["figures"][name]) for name in NAMES),
        charts="".join(charts(report)),
        words=word_table(report),
        sources=table("By source", report["sources"]),
        categories=table("By category", report["categories"]),
        worst="".join(worst(report)),
        method=method(report),
    )


def lead(report: Report) -> str:
    return (
        f"{report['rows']:,} labelled {report['side']}s, {report['harmful']:,} of them harmful;"
        f" flagged from {report['threshold']:.3f} on (strictness {report['strictness']})."
    )


def notes(report: Report) -> Iterator[str]:
    if report["errors"]:
        yield (
            f"{report['errors']} rows could not be scored. They count as flagged, as under the"
            " default on_error: block, and are on no curve."
        )
    if 0 < report["harmful"] < report["rows"]:
        return
    kind = "harmful" if report["harmful"] else "harmless"
    yield f"All rows are {kind}: what compares the two kinds is left out."


def card(name: str, figure: Mapping[str, Any]) -> str:
    title, about = NAMES[name]
    head = f"<h3>{title}</h3><p class=about>{about}</p>"
    if figure["value"] is None:
        return f"<li>{head}<p class=value>&ndash;</p></li>"
    low, high = figure["low"], figure["high"]
    return (
        f"<li>{head}<p class=value>{figure['value']:.3f}</p>{svg.strip(figure['value'], low, high)}"
        f"<p class=range>95 %: {low:.3f} to {high:.3f}</p></li>"
    )


# -- charts -------------------------------------------------------------------


def charts(report: Report) -> Iterator[str]:
    if report["curves"]["roc"]:
        yield framed("ROC", roc_chart(report), {"accent": "this detector", "faint": "chance"})
    yield framed(
        "Threshold sweep",
        sweep_chart(report),
        {"harm": "recall", "safe": "false alarms", "accent": "F1", "faint": "precision"},
    )
    yield framed(
        "Reliability",
        reliability_chart(report),
        {"accent": "seen; larger dots, more rows", "faint": "perfectly calibrated"},
    )
    yield framed("Scores", spread_chart(report), {"harm": "harmful rows", "safe": "harmless rows"})


def framed(title: str, chart: str, legend: Mapping[str, str]) -> str:
    keys = "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in legend.items())
    caption = f"<figcaption><h3>{title}</h3><ul class=legend>{keys}</ul></figcaption>"
    return f"<figure>{caption}{chart}</figure>"


def roc_chart(report: Report) -> str:
    points = [(x, y) for x, y, _ in report["curves"]["roc"]]
    marks = [
        svg.area(points, "accent"),
        svg.line([(0, 0), (1, 1)], "faint"),
        svg.line(points, "accent"),
        *(named_dot(word, rates) for word, rates in report["words"].items()),
    ]
    area = report["figures"]["auroc"]["value"]
    return svg.chart("ROC", f"area {area:.3f}", ("false alarms", "recall"), marks)


def named_dot(word: str, rates: Mapping[str, float]) -> str:
    x, y = rates["false_alarms"], rates["recall"]
    told = f"{word}: recall {y:.3f}, false alarms {x:.3f}"
    name = svg.label(svg.across(x) + 9, svg.down(y) + 12, word, kind="name")
    return svg.dot(x, y, "accent", told) + name


def sweep_chart(report: Report) -> str:
    sweep = report["curves"]["sweep"]
    kinds = {"precision": "faint", "f1": "accent", "false_alarms": "safe", "recall": "harm"}
    lines = [
        svg.line(zip(sweep["threshold"], sweep[name], strict=True), kind)
        for name, kind in kinds.items()
    ]
    ordered = sorted(rules(report).items(), key=lambda pair: pair[1])
    drawn = [svg.rule(t, word, row) for row, (word, t) in enumerate(ordered)]
    summary = "recall, false alarms, F1 and precision at every threshold"
    return svg.chart("Threshold sweep", summary, ("threshold", "share"), [*drawn, *lines])


def rules(report: Report) -> dict[str, float]:
    """The thresholds with their names; the one that was used, if it has none."""
    named: dict[str, float] = dict(report["thresholds"])
    if report["threshold"] not in named.values():
        named["used"] = report["threshold"]
    return named


def reliability_chart(report: Report) -> str:
    bins = report["curves"]["reliability"]
    most = max(bins["rows"])
    dots = [
        svg.dot(
            x,
            y,
            "accent",
            f"{n} rows: mean score {x:.3f}, {y:.3f} harmful",
            3 + 8 * (n / most) ** 0.5,
        )
        for x, y, n in zip(bins["score"], bins["harmful"], bins["rows"], strict=True)
    ]
    line = svg.line(zip(bins["score"], bins["harmful"], strict=True), "accent")
    error = report["figures"]["ece"]["value"]
    marks = [svg.line([(0, 0), (1, 1)], "faint"), line, *dots]
    return svg.chart(
        "Reliability",
        f"expected calibration error {error:.3f}",
        ("mean score", "share that was harmful"),
        marks,
    )


def spread_chart(report: Report) -> str:
    spread = report["curves"]["spread"]
    used = svg.rule(report["threshold"], "threshold")
    marks = [*bars(spread["harmless"], "safe"), *bars(spread["harmful"], "harm"), used]
    summary = "how the scores of both kinds are spread"
    return svg.chart("Scores", summary, ("score", "share of rows"), marks)


def bars(shares: list[float], kind: str) -> Iterator[str]:
    width = 1 / len(shares)
    for i, share in enumerate(shares):
        start, end = i * width, (i + 1) * width
        if share:
            told = f"{100 * share:.1f} % score {start:.2f} to {end:.2f}"
            yield svg.bar(start, end, share, kind, told)


# -- tables -------------------------------------------------------------------


def word_table(report: Report) -> str:
    if not report["words"]:
        return ""
    columns = ("recall", "false_alarms", "precision", "f1")
    heads = "".join(f"<th scope=col>{NAMES[name][0]}</th>" for name in columns)
    lines = "".join(
        f"<tr><th scope=row>{escape(word)}</th><td>{report['thresholds'][word]:.3f}</td>"
        + "".join(f"<td>{number(rates[name])}</td>" for name in columns)
        + "</tr>"
        for word, rates in report["words"].items()
    )
    return scrolled(
        "By strictness", f"<th scope=col>Strictness</th><th scope=col>From</th>{heads}", lines
    )


def table(title: str, groups: Mapping[str, Report]) -> str:
    """One line a group, the largest first; nothing if there is but one to compare."""
    if not groups:
        return ""
    columns = "".join(f"<th scope=col>{title}</th>" for title, _ in NAMES.values())
    ordered = sorted(groups.items(), key=lambda pair: -pair[1]["rows"])
    heads = f"<th scope=col>Name</th><th scope=col>Rows</th><th scope=col>Harmful</th>{columns}"
    return scrolled(title, heads, "".join(table_row(name, group) for name, group in ordered))


def table_row(name: str, group: Report) -> str:
    cells = "".join(f"<td>{interval(group['figures'][figure])}</td>" for figure in NAMES)
    return (
        f"<tr><th scope=row>{escape(name)}</th><td>{group['rows']:,}</td>"
        f"<td>{group['harmful']:,}</td>{cells}</tr>"
    )


def scrolled(title: str, heads: str, lines: str) -> str:
    return (
        f'<section><h2>{title}</h2><div class=scroll tabindex=0 role=region aria-label="{title}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "<span class=none>&ndash;</span>"
    span = f"{figure['low']:.2f}&thinsp;&ndash;&thinsp;{figure['high']:.2f}"
    return f"{figure['value']:.3f}<small>{span}</small>"


def number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def worst(report: Report) -> Iterator[str]:
    titles = {"harmless": "Harmless, scored highest", "harmful": "Harmful, scored lowest"}
    for kind, title in titles.items():
        if report["worst"][kind]:
            yield f"<section><h3>{title}</h3>{cases(report['worst'][kind])}</section>"
    if report["failed"]:
        yield f"<section><h3>Could not be scored</h3>{cases(report['failed'])}</section>"


def cases(found: Iterable[Mapping[str, Any]]) -> str:
    return f"<ol class=cases>{''.join(map(case, found))}</ol>"


def case(found: Mapping[str, Any]) -> str:
    about = " &middot; ".join(
        escape(str(part)) for part in (found["id"], found["source"], *found["categories"])
    )
    if "score" in found:
        wrong = found["flagged"] != found["harmful"]
        verdict = "wrong" if wrong else "right"
        score = f"<b class={verdict}>{found['score']:.3f}</b> {verdict} at this threshold"
    else:
        score = f"<b class=wrong>error</b> {escape(found['error'])}"
    return f"<li><p>{score} <span class=about>{about}</span></p>{texts(found)}</li>"


def texts(found: Mapping[str, Any]) -> str:
    shown = "".join(
        f"<dt>{name}</dt><dd dir=auto>{escape(found[name])}</dd>"
        for name in ("prompt", "response")
        if found.get(name)
    )
    return f"<details><summary>Text</summary><dl>{shown}</dl></details>" if shown else ""


def method(report: Report) -> str:
    draws, data = report["bootstrap"], report["data"]
    files = "".join(
        f"<li>{escape(name)} <code>sha256 {escape(sha)}</code></li>"
        for name, sha in data.get("files", {}).items()
    )
    return (
        f"<p>Intervals: {100 * draws['level']:g} %, percentile bootstrap of {draws['draws']:,}"
        f" draws over {draws['prompts']:,} prompts (seed {draws['seed']}); a rate of exactly 0 or"
        f" 1 has Clopper and Pearson&rsquo;s. Left out: {data.get('unlabelled', 0):,} rows without"
        f" a label, {data.get('textless', 0):,} without the text. Rows without a score:"
        f" {report['errors']:,}.</p><ul>{files}</ul>"
    )
