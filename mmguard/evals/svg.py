"""Small charts as SVG text: axes from 0 to 1, lines, dots, bars and upright rules.

Colours are classes, so that the page's style decides them for light and for dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 420, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 16, 46
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
Point = tuple[float, float | None]


def across(x: float) -> float:
    return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1)


def down(y: float) -> float:
    return round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM), 1)


def chart(title: str, summary: str, axes: tuple[str, str], marks: Iterable[str]) -> str:
    """A chart with a spoken summary; marks are drawn in order over the grid."""
    said = f"<title>{escape(title)}</title><desc>{escape(summary)}</desc>"
    inside = "".join([grid(*axes), *marks])
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: '
        f'{escape(summary)}">{said}{inside}</svg>'
    )


def grid(x: str, y: str) -> str:
    lines = []
    for tick in TICKS:
        at, up = across(tick), down(tick)
        lines.append(
            f'<path class="grid" d="M{at} {down(0)}V{down(1)}M{across(0)} {up}H{across(1)}"/>'
        )
        lines.append(label(at, HEIGHT - BOTTOM + 17, f"{tick:g}", "middle"))
        lines.append(label(LEFT - 8, up + 4, f"{tick:g}", "end"))
    lines.append(label(across(0.5), HEIGHT - 8, x, "middle", "axis"))
    turned = f"rotate(-90 13 {down(0.5)})"
    lines.append(
        f'<text class="axis" text-anchor="middle" x="13" y="{down(0.5)}" transform="{turned}">'
        f"{escape(y)}</text>"
    )
    return "".join(lines)


def label(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x}" y="{y}">{escape(text)}</text>'


def line(points: Iterable[Point], kind: str) -> str:
    """A line through the points, broken where a point has no value."""
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{across(x)} {down(y)}")
    drawn = "".join(f"M{'L'.join(piece)}" for piece in pieces if piece)
    return f'<path class="line {kind}" d="{drawn}"/>' if drawn else ""


def area(points: Sequence[tuple[float, float]], kind: str) -> str:
    """What lies below a line."""
    edge = "L".join(f"{across(x)} {down(y)}" for x, y in points)
    ends = f"L{across(points[-1][0])} {down(0)}L{across(points[0][0])} {down(0)}"
    return f'<path class="area {kind}" d="M{edge}{ends}Z"/>'


def dot(x: float, y: float, kind: str, told: str, radius: float = 5) -> str:
    """A dot that tells its value to whoever points at it."""
    return (
        f'<circle class="dot {kind}" cx="{across(x)}" cy="{down(y)}" r="{radius:.1f}">'
        f"<title>{escape(told)}</title></circle>"
    )


def bar(start: float, end: float, height: float, kind: str, told: str) -> str:
    wide = max(1.0, across(end) - across(start) - 1)
    tall = down(0) - down(min(1.0, height))
    return (
        f'<rect class="bar {kind}" x="{across(start)}" y="{down(min(1.0, height))}"'
        f' width="{wide:.1f}" height="{tall:.1f}"><title>{escape(told)}</title></rect>'
    )


def rule(x: float, text: str, row: int = 0) -> str:
    """An upright line with a name; `row` moves the name down so that names stay apart."""
    right = x > 0.5
    place = across(x) + (-5 if right else 5)
    name = label(place, TOP + 12 + 14 * row, text, "end" if right else "start", "name")
    return f'<path class="rule" d="M{across(x)} {down(0)}V{down(1)}"/>{name}'


def strip(value: float, low: float, high: float) -> str:
    """A value and its interval on a line from 0 to 1."""
    return (
        '<svg class=strip viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class=track x="0" y="3" width="100" height="2"/>'
        f'<rect class=span x="{100 * low:.1f}" y="2" width="{max(1, 100 * (high - low)):.1f}"'
        ' height="4"/>'
        f'<rect class=mark x="{100 * value - 0.6:.1f}" y="0" width="1.2" height="8"/></svg>'
    )
