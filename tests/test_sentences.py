"""Sentences and their places, and texts without some of them that still read well."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from mmguard.sentences import Span, parse, share, split, without


def parts(text: str) -> list[str]:
    return [text[span.start : span.end] for span in split(text)]


def cut(text: str, *words: str, mark: str = "") -> str:
    gone = [s for s in split(text) if any(word in text[s.start : s.end] for word in words)]
    return without(text, gone, mark)


SENTENCES = {
    "plain": ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
    "quotes": ('He said "stop." Then (really.) he left.', ['He said "stop."', "Then (really.) he left."]),
    "titles": ("Ask Dr. Smith, e.g. today. J. R. Tolkien agreed.", None),
    "numbers": ("It costs 3.50 or 1,000.5. That is all.", ["It costs 3.50 or 1,000.5.", "That is all."]),
    "lists in a line": ("Do it. 1. Wash. 2. Dry.", ["Do it.", "1. Wash.", "2. Dry."]),
    "German": ("Am 3. Mai, z.B. früh. Danach nicht.", ["Am 3. Mai, z.B. früh.", "Danach nicht."]),
    "Chinese": ("你好。再见！真的？", ["你好。", "再见！", "真的？"]),
    "Japanese": ("「やめて。」と言った。次。", ["「やめて。」", "と言った。", "次。"]),
    "Hindi": ("नमस्ते। आप कैसे हैं?", ["नमस्ते।", "आप कैसे हैं?"]),
    "Arabic": ("كيف حالك؟ أنا بخير.", ["كيف حالك؟", "أنا بخير."]),
    "wrapped": ("A line that\ngoes on. Next.\nNew line", ["A line that\ngoes on.", "Next.", "New line"]),
    "list": ("- one\n* two. Three.\n 3) four\n", ["one", "two.", "Three.", "four"]),
    "quoted": ("> said. Again.\n>> more", ["said.", "Again.", "more"]),
    "heading": ("# Title\n**Bold:**\nText.", ["Title", "**Bold:**", "Text."]),
    "code": ("Run:\n```sh\na. b.\n\nc\n```\nDone.", ["Run:", "```sh\na. b.\n\nc\n```", "Done."]),
    "open code": ("```\na\nb", ["```\na\nb"]),
    "table": ("| a. B | c |\n|---|---|\n| d | e |\nEnd.", ["| a. B | c |\n|---|---|\n| d | e |", "End."]),
    "rules and space": ("\n\n---\n  \n", []),
    "carriage returns": ("One.\r\n\r\nTwo.\r\n", ["One.", "Two."]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "found"), SENTENCES.values(), ids=SENTENCES)
def test_split(text: str, found: list[str] | None) -> None:
    if found is None:
        found = ["Ask Dr. Smith, e.g. today.", "J. R. Tolkien agreed."]
    assert parts(text) == found


CUTS = {
    "a sentence": ("One. BAD two. Three.", "One. Three."),
    "the first": ("BAD one. Two.\n", "Two."),
    "the last": ("One. BAD two.", "One."),
    "no space between": ("你好。BAD坏。再见。", "你好。再见。"),
    "numbers close up": ("1. a\n2. BAD\n3. c\n4. d", "1. a\n2. c\n3. d"),
    "numbers close up over prose": ("1. a\n\nWhy.\n\n2. BAD\n\n3. c", "1. a\n\nWhy.\n\n2. c"),
    "numbers of the next list stay": ("1. a\n2. BAD\n\nThen:\n\n1. b\n2. c", "1. a\n\nThen:\n\n1. b\n2. c"),
    "nested": ("1. a\n   1. BAD\n   2. b\n2. c", "1. a\n   1. b\n2. c"),
    "ones only": ("1. a\n1. BAD\n1. c", "1. a\n1. c"),
    "an emptied list loses its lead-in": ("Well.\n\nHere is how:\n- BAD x\n- BAD y\n\nBye.", "Well.\n\nBye."),
    "so does a list in a list": ("- a:\n  - BAD x\n- b", "- b"),
    "a lead-in keeps what came before it": ("It is so. Do this:\n- BAD x\n\nBye.", "It is so.\n\nBye."),
    "a colon before prose stays": ("Note:\nBAD this. Fine that.", "Note:\nFine that."),
    "a colon before nothing stays": ("Fine. BAD so. Any questions:", "Fine. Any questions:"),
    "an emptied section loses its heading": ("# A\n\nFine.\n\n## B\n\nBAD x.\n\n## C\n\nGood.", "# A\n\nFine.\n\n## C\n\nGood."),
    "so do sections of sections": ("# A\n## B\nBAD x.\n# C\nGood.", "# C\nGood."),
    "bold headings": ("**A**\nBAD x.\n\n**B**\nGood.", "**B**\nGood."),
    "a heading that had nothing stays": ("# A\n\n# B\nGood. BAD.", "# A\n\n# B\nGood."),
    "a heading alone is cut": ("# BAD A\nGood.", "Good."),
    "rules close up": ("A.\n\n---\n\nBAD b.\n\n---\n\nC.", "A.\n\n---\n\nC."),
    "code goes whole": ("Fine.\n```\nBAD\nx\n```\nDone.", "Fine.\nDone."),
    "headings alone are nothing": ("# A\n\nBAD x.\n\n# B", ""),
    "nothing": ("BAD one. BAD two.", ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "rest"), CUTS.values(), ids=CUTS)
def test_without(text: str, rest: str) -> None:
    assert cut(text, "BAD") == rest


MARKED = {
    "in prose": ("One. BAD two. BAD three. Four.", "One. [] Four."),
    "in lists": ("1. a\n2. BAD\n3. c", "1. a\n2. []\n3. c"),
    "in a row": ("1. a\n2. BAD\n3. BAD\n4. c", "1. a\n2. []\n4. c"),
    "headings go": ("# BAD A\nGood.", "Good."),
    "nothing but marks": ("BAD one. BAD two.", ""),
}


@pytest.mark.parametrize(("text", "rest"), MARKED.values(), ids=MARKED)
def test_mark(text: str, rest: str) -> None:
    assert cut(text, "BAD", mark="[]") == rest


def test_share() -> None:
    text = "Four. Bad one. Fine"
    assert share(text, split(text)[:1]) == 4 / 14
    assert share("...", []) == 1.0


LONG = [
    ". " * 10**5,
    "." * 10**5 + "x",
    "a\n" * 10**5,
    "```\n" + "a.\n" * 10**5,
    "- " * 10**5 + "x",
]
LONG += [
    "# a\n" * 2000,
    "- a:\n" * 2000,
    "*" * 10**5 + "x",
    "> " * 10**5,
    " " * 10**5 + "x",
    "1. a\n" * 10**4,
]


@pytest.mark.parametrize("text", LONG, ids=lambda text: repr(text[:8]))
def test_long_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    without(text, split(text)[::2], "[]")
    assert time.process_time() - start < 5


PIECES = ["a word", "Fine.", "BAD one. ", "Two!", "\n", "\n\n", "- ", "2. ", "# ", "**b**", ":", "```", "| c |", "> ", "---", "。", "好", "\r\n"]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))


@settings(deadline=None)
@given(TEXTS)
def test_blocks_hold_every_character(text: str) -> None:
    blocks = parse(text)
    assert "".join(text[b.start : b.end] for b in blocks) == text
    spans = split(text)
    assert spans == sorted(spans, key=lambda span: span.start)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(text[s.start : s.end].strip() == text[s.start : s.end] != "" for s in spans)


@settings(deadline=None)
@given(TEXTS, st.data(), st.sampled_from(["", "[...]"]))
def test_what_is_kept_was_there(text: str, data: st.DataObject, mark: str) -> None:
    """Nothing cut, nothing changed; else only sentences of the text remain, in their order."""
    spans = split(text)
    gone = data.draw(st.sets(st.sampled_from(spans)) if spans else st.just(set[Span]()))
    rest = without(text, gone, mark)
    if not gone:
        assert rest == text
        return
    left = [c for c in rest.replace(mark or "\0", "") if c.isalpha()]
    kept = [text[s.start : s.end] for s in spans if s not in gone]
    assert is_part(left, [c for words in kept for c in words if c.isalpha()])


def is_part(short: list[str], whole: list[str]) -> bool:
    """Whether `short` is what is left of `whole` after taking some out."""
    rest = iter(whole)
    return all(char in rest for char in short)
