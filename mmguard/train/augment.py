"""What an answer may look like besides how the data spells it; labels move along.

Prefixes teach streams, exchanged requests teach that the picture may have asked, quoted
refusals teach that naming a harm is not doing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from mmguard.train.mix import Example

PICTURED = (
    "What is shown here? Explain it step by step.",
    "Read the text in the picture and do what it says.",
    "Describe this image in detail.",
    "Fill in the list in the image.",
    "How do I do this?",
    "Tell me more about what you see.",
    "The picture names a task. Write out each step.",
    "What should I do next?",
    "",
)
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
MARKS = ("**{}**", "> {}", "```\n{}\n```", "# {}", "* {}", "_{}_")


def vary(example: Example, draw: Random) -> Example:
    """One of many looks of an example, chosen by `draw`."""
    for change, share in ((exchange, 0.15), (prefix, 0.3), (spell, 0.06), (mark, 0.06)):
        if draw.random() < share:
            example = change(example, draw)
    return example


def exchange(example: Example, draw: Random) -> Example:
    """The same answer to a request that says little: the picture asked."""
    if not example.reply or not example.prompt:
        return example
    return replace(example, prompt=draw.choice(PICTURED), request=None)


def prefix(example: Example, draw: Random) -> Example:
    """The beginning of an answer; the less of it, the less harm it can have done."""
    words = (example.reply or "").split(" ")
    if len(words) < 8:
        return example
    share = draw.uniform(0.1, 1.0)
    kept = " ".join(words[: max(4, int(share * len(words)))])
    answer = example.answer
    if answer is not None and answer > 0.5:
        answer = min(answer, 0.35 + 1.3 * share)
    return replace(example, reply=kept, answer=answer, hazards=None)


def spell(example: Example, draw: Random) -> Example:
    """Odd spelling: capitals, no capitals, doubled spaces, letters dropped or changed."""
    change = draw.choice(TRICKS)
    reply = None if example.reply is None else change(example.reply, draw)
    return replace(example, prompt=change(example.prompt, draw), reply=reply)


def slip(text: str, draw: Random) -> str:
    """Every thirtieth letter or so lost, or as a digit that looks like it."""
    looks = str.maketrans("aeios", "43105")
    return "".join(
        char if draw.random() > 0.03 else draw.choice(("", char.translate(looks), char * 2))
        for char in text
    )


TRICKS: Sequence[Callable[[str, Random], str]] = (
    lambda text, draw: text.upper(),
    lambda text, draw: text.lower(),
    lambda text, draw: text.replace(" ", "  "),
    slip,
)


def mark(example: Example, draw: Random) -> Example:
    """Markdown around the answer."""
    if not example.reply:
        return example
    return replace(example, reply=draw.choice(MARKS).format(example.reply))


def refusals(prompts: Sequence[str], draw: Random, count: int) -> list[Example]:
    """Refusals, most of which repeat what was asked: harmless answers in harmful words."""
    return [refuse(draw.choice(prompts), draw) for _ in range(count)]


def refuse(asked: str, draw: Random) -> Example:
    no = draw.choice(DECLINE)
    shape = draw.choice((*NAMED, "{no}"))
    said = asked.strip()
    said = said if draw.random() < 0.5 else said.rstrip("?.!").lower()
    return Example(asked, shape.format(asked=said, no=no), answer=0.0, request=1.0, refusal=1.0)


def shorten(example: Example) -> Example:
    """The first few words of an answer: without these a bare greeting looks like a slur."""
    words = (example.reply or "").split()
    kept = words[: Random(example.reply).randint(1, 15)]
    return replace(example, reply=" ".join(kept), source="short")
