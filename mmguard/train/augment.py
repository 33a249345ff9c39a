"""What an answer may look like besides how the data spells it; labels move along.

Prefixes teach streams, exchanged requests teach that the picture may have asked, quoted
refusals teach that naming a harm is not doing it.
"""

from __future__ import annotations

import re
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
MARKS = ("**{}**", "> {}", "```\n{}\n```", "# {}", "* {}", "_{}_")


SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
MARKUP = re.compile(r"[*#>`_~|]+|^\s*(?:\d+[.)]|[-+])\s", re.MULTILINE)
LINES = (
    "{i}. **{lead}**: {x}",
    "{i}. {x}",
    "* {x}",
    "- **{lead}:** {x}",
    "\n### {i}. {lead}\n{x}",
    "**Step {i}:** {x}",
    "{x}",
)
OPENINGS = (
    "Certainly! Here are some steps:\n\n",
    "Sure, here is what you asked for:\n\n",
    "Of course! Let's go through it.\n\n",
    "Here are some suggestions:\n\n",
    "Based on the image, here is a plan:\n\n",
    "The picture shows what you need. To do this, follow these steps:\n\n",
    "Here's how it can be done:\n",
    "",
)
CLOSINGS = (
    "\n\nRemember to put safety first.",
    "\n\nI hope this helps!",
    "\n\nIt is important to follow the rules that apply where you live.",
    "\n\nLet me know if you would like more details.",
    "",
    "",
)


def vary(example: Example, draw: Random) -> Example:
    """One of many looks of an example, chosen by `draw`."""
    for change, share in CHANGES:
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


def dress(example: Example, draw: Random) -> Example:
    """A harmless answer as a list in Markdown, or a harmful one without: style is not harm."""
    if not example.reply or example.answer is None:
        return example
    change = undressed if example.answer > 0.5 else dressed
    return replace(example, reply=change(example.reply, draw))


def dressed(text: str, draw: Random) -> str:
    lines = [line.strip() for line in SENTENCE.split(text) if len(line.strip()) > 3]
    shape = draw.choice(LINES)
    listed = "\n".join(shape.format(i=i, lead=lead(x), x=x) for i, x in enumerate(lines, 1))
    return f"{draw.choice(OPENINGS)}{listed}{draw.choice(CLOSINGS)}"


def lead(line: str) -> str:
    return " ".join(line.split()[:3]).strip(".,:;!?*").title()


def undressed(text: str, draw: Random) -> str:
    plain = re.sub(r"\s+", " ", MARKUP.sub(" ", text)).strip()
    first, _, rest = plain.partition(": ")
    return rest if len(rest) > 80 and len(first) < 160 and draw.random() < 0.5 else plain


def mark(example: Example, draw: Random) -> Example:
    """Markdown around the answer."""
    if not example.reply:
        return example
    return replace(example, reply=draw.choice(MARKS).format(example.reply))


CHANGES: Sequence[tuple[Callable[[Example, Random], Example], float]] = (
    (exchange, 0.15),
    (dress, 0.3),
    (prefix, 0.3),
    (spell, 0.06),
    (mark, 0.06),
)
