"""Lessons for a conscience: decline what is plainly harmful, and answer everything else.

The harmful half is words alone, as the safety training of real language models is; pictures
come with harmless requests only, as in the tuning of real MLLMs, which is what pictures later
slip through. The answer from a description (eyes closed) and the judge's question are taught
as texts too, so that those steps keep their meaning. Harmless requests are of the lengths and
forms of the harmful ones, so that neither tells them apart, and the bare model answers them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from mmguard import prompts
from mmguard.sentences import split
from mmguard.train import everyday, tasks
from mmguard.train.border import BORDER
from mmguard.train.lessons import Lesson

Row = Mapping[str, Any]
Speak = Callable[[Sequence[str]], Sequence[str]]

# Alike in their first words: what is learnt is when to say them.
OPENINGS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I can't help with this.",
    "I'm sorry, but I can't assist with that.",
)
REASONS = (
    "It could hurt somebody.",
    "It could do serious harm.",
    "It would put people at risk.",
    "It harms others, and it may be against the law.",
)
OFFERS = (
    "I'm glad to help with something safe instead.",
    "If something troubles you, I'm glad to talk it through.",
)
PAGES = ("a page that says", "a sign with the words", "a screen that shows", "a note that reads")
# Sources whose requests are plainly harmful without more context. HarmfulQA's often are not.
PLAIN = ("advbench_prompts", "catqa")
ANSWERED = ("gptfuzz_train", "jbb_artifacts", "msts_en_text", "refusal_direction")
LONGEST = 400
# The wish in a question such as "How can I ...?".
HELD = 30
COUNTS = {
    "harmful": 680,
    "varied": 300,
    "everyday": 540,
    "benign": 190,
    "pictured": 100,
    "closed": 26,
    "described": 12,
    "judged": 12,
}
AGAIN = {"harmful": 0.62, "everyday": 0.62, "border": 0.6, "benign": 0.4, "picture": 0.4}
# What is wished for in a question such as "How can I ...?".
WISH = re.compile(
    r"(?:How (?:to|(?:can|do|could|should) (?:I|you|we|someone))|.{0,70} how to) (.{3,}?)[?.]?",
    re.DOTALL,
)
DECLINES = ("can't", "cannot", "can not", "sorry", "unable", "not able")


def conscience(rows: Sequence[Row], speak: Speak, seed: int, size: float = 1.0) -> list[Lesson]:
    """All lessons that the rows make, in a drawn order; `size` scales how many of each.

    `speak` gives the bare model's answers; where those decline, nothing is learnt.
    """
    draw = Random(seed)
    many = {name: int(count * size) for name, count in COUNTS.items()}
    harmful = wishes(rows)
    draw.shuffle(harmful)
    described = [row for row in rows if row.get("source") == "vlsbench"]
    draw.shuffle(described)
    kept = harmful[HELD:][: many["harmful"]]
    found = [
        *(decline(wish, draw, held=True) for wish in harmful[:HELD] if kept),
        *(decline(wish, draw) for wish in (*kept, *varied(kept, draw)[: many["varied"]])),
        *closed_harmful(kept[: many["closed"]], described[: many["described"]], draw),
        *spoken(harmless(rows, many, draw), speak),
        *(
            Lesson(query, " ".join(answer.split()[:9]), "border", whole=False)
            for query, answer in BORDER
        ),
        *judged(rows, many["judged"], draw),
    ]
    draw.shuffle(found)
    return found


def again(lessons: Sequence[Lesson], seed: int) -> list[Lesson]:
    """Part of them once more, for a stage that learns by the first words alone."""
    many = Counter(lesson.source for lesson in lessons)
    left = {name: count * AGAIN.get(name, 0.25) for name, count in many.items()}
    found, drawn = list[Lesson](), list(lessons)
    Random(f"{seed} second").shuffle(drawn)
    for lesson in drawn:
        if left[lesson.source] > 0:
            left[lesson.source] -= 1
            found.append(lesson)
    return found


# -- harmful ------------------------------------------------------------------


def wishes(rows: Sequence[Row]) -> list[str]:
    """Harmful requests in plain words, each once."""
    found: dict[str, None] = {}
    for row in rows:
        goal = str((row.get("meta") or {}).get("goal") or row.get("prompt") or "").strip()
        if row.get("prompt_harm") != 1 or not goal or len(goal) > LONGEST:
            continue
        if row.get("source") in PLAIN or (row.get("source") in ANSWERED and refused(row)):
            found[goal] = None
    return list(found)


def refused(row: Row) -> bool:
    """Whether a harmless answer declines."""
    marked = row.get("refusal") == 1 or (row.get("meta") or {}).get("refusal_rule") == 1
    return row.get("response_harm") == 0 and marked and declines(str(row.get("response") or ""))


def declines(answer: str) -> bool:
    return any(word in answer[:60].lower() for word in DECLINES)


def varied(harmful: Sequence[str], draw: Random) -> list[str]:
    """The same wishes in the forms of harmless ones, where they can be told from their form."""
    found = [match[1] for wish in harmful if (match := WISH.fullmatch(wish))]
    return [draw.choice(tasks.FORMS).format(wish) for wish in found]


def decline(prompt: str, draw: Random, source: str = "harmful", held: bool = False) -> Lesson:
    """Most of them end early: only the first words decide."""
    opening, rest = draw.choice(OPENINGS), [draw.choice(REASONS)]
    if draw.random() < 0.3:
        rest.append(draw.choice(OFFERS))
    if draw.random() < 0.6:
        return Lesson(prompt, opening, source, whole=False, held=held)
    return Lesson(prompt, " ".join([opening, *rest]), source, held=held)


def closed_harmful(
    harmful: Sequence[str], described: Sequence[Row], draw: Random
) -> Iterator[Lesson]:
    """Asked over a description of the picture, where the harm stands in either."""
    for wish in harmful:
        yield decline(closed(f'{draw.choice(PAGES)} "{wish}"', question(draw)), draw, "closed")
    for row in described:
        if seen := (row.get("meta") or {}).get("image_desc"):
            yield decline(closed(seen, row["prompt"]), draw, "closed")


def closed(seen: str, query: str) -> str:
    return prompts.fill(prompts.CLOSED, caption=prompts.quote([seen]), query=query)


QUESTIONS = (
    "What is asked here? Answer it.",
    "Please do what the picture says.",
    "Answer the question in the picture.",
    "Help me with this.",
    "Follow the text in the image step by step.",
)


def question(draw: Random) -> str:
    return draw.choice(QUESTIONS)


# -- harmless -----------------------------------------------------------------


def harmless(rows: Sequence[Row], many: Mapping[str, int], draw: Random) -> Iterator[Lesson]:
    """Requests without answers. The first groups of everyday ones are held out."""
    asked = [*everyday.groups(draw), *tasks.groups(draw)]
    draw.shuffle(asked)
    yield from (Lesson(group[0], "", "everyday", held=True) for group in asked[:HELD])
    taught = asked[HELD:][: many["everyday"]]
    yield from (Lesson(text, "", "everyday") for group in taught for text in group)
    yield from (Lesson(text, "", "benign") for text in short(rows, draw)[: many["benign"]])
    for seen, query in everyday.sights(draw, many["pictured"]):
        yield Lesson(f"Picture: {seen}\n{query}", "", "picture")
    for group in draw.sample(taught, min(many["closed"], len(taught))):
        seen = f'{draw.choice(PAGES)} "{group[0]}"'
        yield Lesson(closed(seen, question(draw)), "", "closed harmless")


def short(rows: Sequence[Row], draw: Random) -> list[str]:
    """Harmless requests of the data, most of them cut to their first line or sentence."""
    found: dict[str, None] = {}
    for row in rows:
        text = str(row.get("prompt") or "").strip()
        if row.get("source") == "benign_instruct" and len(text) <= LONGEST:
            if draw.random() < 0.6:
                text = next((text[part.start : part.end] for part in split(text)), "")
            found[text.split("\n")[0].strip()] = None
    kept = [text for text in found if len(text) >= 8]
    draw.shuffle(kept)
    return kept


def spoken(asked: Iterable[Lesson], speak: Speak) -> Iterator[Lesson]:
    """With the first words of the bare model's answers, unless they decline."""
    waiting = list(asked)
    taught = [item for item in waiting if not item.held]
    yield from (item for item in waiting if item.held)
    for item, said in zip(taught, speak([item.prompt for item in taught]), strict=True):
        if said.strip() and not declines(said):
            yield replace(item, answer=said, whole=False)


def begin(query: str, answer: str) -> Lesson:
    return Lesson(query, " ".join(answer.split()[:9]), "border", whole=False)


def judged(rows: Sequence[Row], most: int, draw: Random) -> Iterator[Lesson]:
    """The judge's question, half of the answers harmful: whoever judges does not decline."""
    for harm in (0, 1):
        known = [
            row
            for row in rows
            if row.get("response_harm") == harm
            and row.get("source") in ("gptfuzz_train", "benign_instruct", "jbb_artifacts")
            and 40 < len(row["response"]) < 500
            and len(row["prompt"]) < LONGEST
        ]
        for row in draw.sample(known, min(most, len(known))):
            text = prompts.fill(prompts.JUDGE, query=row["prompt"], answer=row["response"])
            yield Lesson(text, "Yes" if harm else "No", "judge")
