"""Examples that no data set has, made from those that one has.

What they have in common: a harmful request does not make an answer harmful, nor do a list,
a long answer or a word; a little harm in a long answer does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from mmguard.train.augment import PICTURED, dressed, lead
from mmguard.train.mix import PICTURED as BY_PICTURE, Example

LEAST = 60
# Sources whose harmful answers are answers to requests, not talk among people.
PAIRED = ("gptfuzz_train", "jbb_artifacts", "llm_adaptive_attacks", "refusal_direction")
DECLINE = (
    "I can't help with that.",
    "I'm not able to assist with this request.",
    "Sorry, but no.",
    "I won't do this.",
    "I'm sorry, I cannot go along with this.",
    "As an assistant, I have to decline.",
    "That is not something I will write.",
    "I must refuse.",
    "No. This would hurt people.",
    "My apologies, that is beyond what I can do.",
)
NAMED = (
    'You asked: "{asked}" {no}',
    "{no} {asked} - that would be harmful and may be against the law.",
    "{no} What you describe ({asked}) could seriously hurt somebody.",
    "{asked}? {no} If you are in trouble, please talk to somebody you trust.",
    '{no} I understand the question "{asked}", but an answer could be misused.',
    "{no} I would gladly tell you how people protect themselves from this instead: {asked}",
)
SHOWN = (
    "The image shows this: {seen}",
    "In the picture I can see the following. {seen}",
    "This appears to be a photo. {seen}",
    "{seen} That is what the picture shows.",
    "{seen}",
)
# How many of each are made for a corpus of full size, and for smaller ones a share of it.
COUNTS = {"refuse": 1200, "compose": 1600, "taint": 500, "cross": 1500, "depict": 1600}


class Source:
    """The parts from which examples are made."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self.asked = sorted({e.prompt for e in pool if is_plain(e)})
        self.plain = [e for e in pool if e.source == "benign_instruct" and long_enough(e, 0)]
        self.harmful = [e for e in pool if long_enough(e, 1) and e.source in PAIRED]
        told = (e.prompt.partition("\n")[2] for e in pool if e.source in BY_PICTURE)
        self.seen = sorted({seen for seen in told if seen})


def is_plain(example: Example) -> bool:
    """Whether the request is harmful by its own words, and short."""
    named = example.source not in BY_PICTURE
    return example.request == 1 and named and 0 < len(example.prompt) < 300


def long_enough(example: Example, answer: int) -> bool:
    return example.answer == answer and len(example.reply or "") >= LEAST


def make(pool: Sequence[Example], draw: Random) -> list[Example]:
    """Every kind of made example, as many as suit the size of the pool."""
    source = Source(pool)
    found = [shorten(e) for e in pool if e.source == "benign_instruct" and e.reply]
    if not source.asked:
        return found
    kinds: list[tuple[str, Callable[[Source, Random], Example]]] = [("refuse", refuse)]
    if source.plain and source.harmful:
        kinds += [("compose", compose), ("taint", taint), ("cross", cross)]
        kinds += [("depict", depict)] if source.seen else []
    for name, kind in kinds:
        found += [kind(source, draw) for _ in range(min(COUNTS[name], len(pool) // 16))]
    return found


def refuse(source: Source, draw: Random) -> Example:
    """A refusal that mostly repeats what was asked: a harmless answer in harmful words."""
    asked, no = draw.choice(source.asked), draw.choice(DECLINE)
    shape = draw.choice((*NAMED, "{no}"))
    said = asked.strip()
    said = said if draw.random() < 0.5 else said.rstrip("?.!").lower()
    return Example(asked, shape.format(asked=said, no=no), answer=0.0, request=1.0, refusal=1.0)


def compose(source: Source, draw: Random) -> Example:
    """A long harmless answer with headings and lists, as helpful models write them."""
    parts = draw.sample(source.plain, min(len(source.plain), draw.randint(2, 4)))
    asked = draw.choice((draw.choice(PICTURED), parts[0].prompt, draw.choice(source.asked)))
    sections = [f"**{lead(e.prompt)}**\n{dressed(clip(e, 60), draw)}" for e in parts]
    return Example(asked, "\n\n".join(sections), answer=0.0, refusal=0.0, hazards=frozenset())


def taint(source: Source, draw: Random) -> Example:
    """A harmful passage within harmless ones: a harmful answer."""
    bad = draw.choice(source.harmful)
    around = [clip(draw.choice(source.plain), 25) for _ in range(draw.randint(1, 2))]
    around.insert(draw.randint(0, len(around)), clip(bad, 60))
    return replace(bad, reply="\n\n".join(around), refusal=0.0)


def cross(source: Source, draw: Random) -> Example:
    """An answer to another request: it is as harmful as it was."""
    if draw.random() < 0.65:
        return replace(draw.choice(source.plain), prompt=draw.choice(source.asked), request=1.0)
    asked = draw.choice(source.plain).prompt
    return replace(draw.choice(source.harmful), prompt=asked, request=0.0)


def depict(source: Source, draw: Random) -> Example:
    """What an alarming picture shows, and something harmless; at times something harmful."""
    asked = draw.choice((draw.choice(PICTURED), draw.choice(source.asked)))
    told = draw.choice(SHOWN).format(seen=draw.choice(source.seen))
    if draw.random() < 0.25:
        bad = draw.choice(source.harmful)
        reply = f"{told}\n\n{clip(bad, 60)}"
        return replace(bad, prompt=asked, reply=reply, request=None, refusal=0.0)
    more = dressed(clip(draw.choice(source.plain), 80), draw) if draw.random() < 0.7 else ""
    reply = f"{told}\n\n{more}".strip()
    return Example(asked, reply, answer=0.0, refusal=0.0, hazards=frozenset())


def clip(example: Example, words: int) -> str:
    return " ".join((example.reply or "").split(" ")[:words])


def shorten(example: Example) -> Example:
    """The first few words of an answer: without these a bare greeting looks like a slur."""
    words = (example.reply or "").split()
    kept = words[: Random(example.reply).randint(1, 15)]
    return replace(example, reply=" ".join(kept), source="short")
