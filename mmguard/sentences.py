"""The sentences of a text, each with its place in it, and the text without some of them.

Knows headings, lists, quotes, tables, code and how many scripts end a sentence; knows
nothing of harm. Everything that no sentence was cut from stays as it is, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

Kind = Literal["prose", "item", "heading", "code", "blank"]

FENCE = re.compile(r"\s*(`{3,}|~{3,})")
HEADING = re.compile(r"\s{0,3}(?:#{1,6}\s+(?=\S)|(?=(?:\*\*|__)[^*_\n]+(?:\*\*|__):?\s*$))")
ITEM = re.compile(r"\s*(?:>\s?)*(?:(?:[-*+•‣◦]|\d{1,3}[.)]|[a-zA-Z]\))\s+|\d{1,3}、\s*|[①-⑳]\s*)")
QUOTE = re.compile(r"\s*(?:>\s?)*")
RULE = re.compile(r"\s*(?:[-*_]\s*){3,}$")
NUMBER = re.compile(r"\d{1,3}(?=[.)、])")

# Western, Chinese and Japanese; Hindi, Arabic, Urdu, Armenian, Ethiopic, Burmese, Khmer, Tibetan.
END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019\u00bb)\]*_]*+(?:\s++|$)"
    r"|[\u3002\uff01\uff1f\uff61]+[\u300d\u300f\u201d\u2019\uff09\u3011]*\s*"
    r"|[\u0964\u0965\u061f\u06d4\u0589\u1362\u104b\u17d4\u0f0d]+[\"'\u201d\u2019\u00bb)]*\s*"
)
COLONS = (":", "\uff1a")
# A full stop after these ends no sentence: initials, numbers of a list, titles.
SHORT = re.compile(
    r"(?:^|[\s(\"'])(?:[^\W\d_]|\d{1,3}|Dr|Mrs?|Ms|Prof|St|vs|cf|No|Nr|Sra?|Mme|Fig|ca|bzw|approx"
    r"|(?:[^\W\d_]\.)+[^\W\d_])$"
)
WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Span:
    """One sentence's place: `text[start:end]`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that belong together. `body` is where their words begin, after any list mark."""

    kind: Kind
    start: int
    body: int
    end: int
    spans: tuple[Span, ...] = ()


def split(text: str) -> list[Span]:
    """The sentences of a text in order; a heading, a block of code and a table are one each."""
    return [span for block in parse(text) for span in block.spans]


def without(text: str, cut: Collection[Span], mark: str = "") -> str:
    """The text without these sentences, or with `mark` where they stood.

    Headings, lead-ins and list marks that lose all they belong to go with it, and numbered
    lists are numbered on. Nothing remains of a text that keeps no sentence.
    """
    if not cut:
        return text
    blocks = parse(text)
    plan = settle(text, blocks, frozenset(cut), mark)
    if not any(plan[i] for i, block in enumerate(blocks) if block.kind != "heading"):
        return ""
    return "".join(write(text, blocks, plan, mark)).strip("\r\n")


def share(text: str, cut: Collection[Span]) -> float:
    """How much of a text's letters and digits these sentences hold."""
    whole = sum(weigh(text, span) for span in split(text))
    return sum(weigh(text, span) for span in cut) / whole if whole else 1.0


def weigh(text: str, span: Span) -> int:
    return len(WORD.findall(text, span.start, span.end))


# -- reading ------------------------------------------------------------------


def parse(text: str) -> list[Block]:
    """The text as blocks that together hold every character of it."""
    blocks: list[Block] = []
    for start, end in lines(text):
        last = blocks[-1] if blocks else None
        line = text[start:end]
        if last and goes_on(text, last, line):
            blocks[-1] = replace(last, end=end)
        else:
            blocks.append(open_block(line, start, end))
    return [replace(block, spans=tuple(spans(text, block))) for block in blocks]


def lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.splitlines(keepends=True):
        yield start, start + len(line)
        start += len(line)


def goes_on(text: str, last: Block, line: str) -> bool:
    """Whether a line belongs to the block before it: open code, a table, wrapped prose."""
    if last.kind == "code":
        if fence := FENCE.match(text, last.start):
            return not closed(text, last, fence[1])
        return line.lstrip().startswith("|")
    words = line.lstrip()
    return last.kind in ("prose", "item") and words[:1].islower() and not ITEM.match(line)


def closed(text: str, code: Block, fence: str) -> bool:
    """Whether this block of code has come to its closing fence."""
    last = text.rfind("\n", code.start, code.end - 1) + 1
    return last > code.start and text[last : code.end].strip().startswith(fence)


def open_block(line: str, start: int, end: int) -> Block:
    kind, mark = classify(line)
    return Block(kind, start, start + mark, end)


def classify(line: str) -> tuple[Kind, int]:
    """What kind of block a line opens, and how long its mark is."""
    if not line.strip() or RULE.match(line):
        return "blank", 0
    if FENCE.match(line) or line.lstrip().startswith("|"):
        return "code", 0
    if found := HEADING.match(line):
        return "heading", found.end()
    if found := ITEM.match(line):
        return "item", found.end()
    return "prose", len((QUOTE.match(line) or [""])[0])


def spans(text: str, block: Block) -> Iterator[Span]:
    """The sentences of a block, without the space around them."""
    if block.kind == "blank":
        return
    cuts = [block.body, block.end]
    if block.kind in ("prose", "item"):
        found = END.finditer(text, block.body, block.end)
        cuts[1:1] = [m.end() for m in found if ends(text, block.body, m)]
    for start, end in pairwise(cuts):
        words = text[start:end]
        if words.strip():
            yield Span(start + len(words) - len(words.lstrip()), start + len(words.rstrip()))


def ends(text: str, start: int, found: re.Match[str]) -> bool:
    """Whether this mark ends a sentence, rather than a title, an initial or a number."""
    if text[found.end() : found.end() + 1].islower():
        return False
    before = text[max(start, found.start() - 12) : found.start()]
    return not (found[0][0] == "." and SHORT.search(before))


# -- cutting ------------------------------------------------------------------

# What is kept of each block: its sentences, none but the mark (), or nothing at all (None).
Plan = list[tuple[Span, ...] | None]


def settle(text: str, blocks: Sequence[Block], cut: Collection[Span], mark: str) -> Plan:
    """What is kept of each block once these sentences are gone, the last block first."""
    plan: Plan = [()] * len(blocks)
    for i, block in reversed(list(enumerate(blocks))):
        left = tuple(span for span in block.spans if span not in cut)
        if (block.kind == "heading" or leads(text, left)) and bereft(text, blocks, plan, i):
            left = left[:-1]
        keeps = left or not block.spans or (mark and block.kind != "heading")
        plan[i] = left if keeps else None
    return plan


def leads(text: str, left: Sequence[Span]) -> bool:
    """Whether the last of these sentences announces what comes after it."""
    return bool(left) and text[: left[-1].end].rstrip("*_ ").endswith(COLONS)


def bereft(text: str, blocks: Sequence[Block], plan: Plan, i: int) -> bool:
    """Whether all that belongs under this block was lost."""
    under = [k for k in reach(text, blocks, i) if blocks[k].spans]
    return bool(under) and all(plan[k] is None for k in under)


def reach(text: str, blocks: Sequence[Block], i: int) -> Iterator[int]:
    """What belongs under this block: under a heading its section, else the list that follows."""
    top = blocks[i]
    for k in range(i + 1, len(blocks)):
        below = blocks[k]
        if below.kind == "heading" and (top.kind != "heading" or level(below) <= level(top)):
            return
        if top.kind != "heading" and below.kind == "prose":
            return
        if top.kind == below.kind == "item" and indent(text, below) <= indent(text, top):
            return
        yield k


def level(heading: Block) -> int:
    """How deep a heading stands; one that is only bold stands below all others."""
    return heading.body - heading.start or 9


def indent(text: str, block: Block) -> int:
    line = text[block.start : block.end]
    return len(line) - len(line.lstrip())


# -- writing ------------------------------------------------------------------


def write(text: str, blocks: Sequence[Block], plan: Plan, mark: str) -> Iterator[str]:
    """What is kept, without the blank lines and list numbers that would tell of a gap."""
    numbers, lost, last = renumber(text, blocks, plan), False, "blank"
    for i, (block, left) in enumerate(zip(blocks, plan, strict=True)):
        state = "mark" if left == () != block.spans else block.kind
        if left is None or (state == last == "mark") or (lost and state == last == "blank"):
            lost = True
            continue
        lost, last = lost and state in ("blank", "mark"), state
        yield rewrite(text, block, left, mark).replace(*numbers.get(i, ("", "")), 1)


def rewrite(text: str, block: Block, left: Sequence[Span], mark: str) -> str:
    """One block with what is left of it."""
    if left == block.spans:
        return text[block.start : block.end]
    kept, parts, gap = frozenset(left), list[str](), ""
    for span, after in zip(block.spans, (*block.spans[1:], None), strict=True):
        words = text[span.start : span.end] if span in kept else mark
        if words and [words] != parts[-1:]:
            parts += [gap, words]
            gap = text[span.end : after.start] if after else ""
    head, tail = text[block.start : block.spans[0].start], text[block.spans[-1].end : block.end]
    return head + "".join(parts) + tail


def renumber(text: str, blocks: Sequence[Block], plan: Plan) -> dict[int, tuple[str, str]]:
    """Old and new numbers of the list items that must close up to a gap before them."""
    runs, changed = dict[int, tuple[int, int]](), dict[int, tuple[str, str]]()
    for i, block in enumerate(blocks):
        found = NUMBER.search(text[block.start : block.body])
        if block.kind != "item" or found is None:
            continue
        number, deep = int(found[0]), indent(text, block)
        was, now = runs.get(deep, (number, number))
        now = (now if number == was + 1 else number - 1) + (plan[i] is not None)
        runs[deep] = number, now
        if plan[i] is not None and now != number:
            changed[i] = found[0], str(now)
    return changed
