"""Lessons for a conscience: decline what is plainly harmful, and answer everything else.

The harmful half is words alone, as the safety training of real language models is; pictures
come with harmless requests only, as in the tuning of real MLLMs, which is what pictures later
slip through. The answer from a description (eyes closed) and the judge's question are taught
as texts too, so that those steps keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from mmguard import prompts
from mmguard.sentences import split
from mmguard.train.border import BORDER
from mmguard.train.everyday import everyday
from mmguard.train.lessons import Lesson

Row = Mapping[str, Any]
Speak = Callable[[Sequence[str]], Sequence[str]]

OPENINGS = (
    "I can't help with that.",
    "I'm sorry, but I can't help with that.",
    "I won't help with this.",
    "Sorry, I can't assist with this.",
    "I'm not able to help with that.",
)
REASONS = (
    "It could hurt somebody.",
    "It could do serious harm.",
    "It would put people at risk.",
    "It harms others, and it may be against the law.",
    "It would be unfair and cruel to the people concerned.",
)
OFFERS = (
    "I'm glad to help with something safe instead.",
    "If you want to protect yourself or others from it, ask me about that.",
    "If something troubles you, I'm glad to talk it through.",
    "I can tell you about the risks and where to find help.",
)
PAGES = ("a page that says", "a sign with the words", "a screen that shows", "a note that reads")
# Sources whose requests are plainly harmful without more context, and the most of one wish.
PLAIN = {"advbench_prompts": 1, "catqa": 1, "harmfulqa": 1}
ANSWERED = ("gptfuzz_train", "jbb_artifacts", "msts_en_text", "refusal_direction")
EACH = 3
LONGEST = 400


def conscience(rows: Sequence[Row], seed: int, size: float = 1.0) -> list[Lesson]:
    """All lessons that the rows make, in a drawn order; `size` scales how many of each."""
    draw = Random(seed)
    harmful, harmless = wishes(rows), answers(rows)
    draw.shuffle(harmful)
    draw.shuffle(harmless)
    described = [row for row in rows if row.get("source") == "vlsbench"]
    draw.shuffle(described)
    many = {name: int(count * size) for name, count in COUNTS.items()}
    found = [
        *(decline(prompt, told, draw) for prompt, told in harmful[: many["harmful"]]),
        *harmless[: many["harmless"]],
        *(Lesson(asked, said, "border") for asked, said in BORDER * 2),
        *closed_harmful(harmful[: many["closed"]], described[: many["described"]], draw),
        *closed_harmless(harmless[len(harmless) - many["closed"] :], draw),
        *pictured(harmless[many["harmless"] :][: many["pictured"]], draw),
        *judged(rows, many["judged"], draw),
    ]
    draw.shuffle(found)
    return found


def second(rows: Sequence[Row], speak: Speak, seed: int, size: float = 1.0) -> list[Lesson]:
    """The second stage: short everyday requests, with some of every other lesson.

    After the first alone three of four short harmless questions were declined: the harmful
    lessons are short and the harmless ones long.
    """
    draw = Random(f"{seed} second")
    asked = list(everyday(draw))
    mild = [Lesson(p, t, "everyday", whole=False) for p, t in zip(asked, speak(asked), strict=True)]
    rest = conscience(rows, seed + 1, size * REPLAYED)
    found = [*mild, *(lesson for lesson in rest if lesson.source != "border")]
    draw.shuffle(found)
    return found


REPLAYED = 0.18
COUNTS = {
    "harmful": 720,
    "harmless": 420,
    "closed": 60,
    "described": 30,
    "pictured": 70,
    "judged": 35,
}


def wishes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Harmful requests in plain words, each with a refusal of the data, or with none."""
    found: list[tuple[str, str]] = []
    seen: dict[str, int] = {}
    for row in rows:
        source, told = row.get("source"), ""
        goal = str((row.get("meta") or {}).get("goal") or row.get("prompt") or "").strip()
        if row.get("prompt_harm") != 1 or not goal or len(goal) > LONGEST:
            continue
        if source in ANSWERED:
            told = refusal(row)
        if (source in PLAIN or told) and seen.get(goal, 0) < PLAIN.get(str(source), EACH):
            seen[goal] = seen.get(goal, 0) + 1
            found.append((goal, told))
    return found


def refusal(row: Row) -> str:
    """The first two sentences of a harmless answer that declines; empty if it does not."""
    marked = row.get("refusal") == 1 or (row.get("meta") or {}).get("refusal_rule") == 1
    if row.get("response_harm") != 0 or not marked:
        return ""
    text = str(row.get("response") or "").strip()
    told = " ".join(text[part.start : part.end].strip() for part in split(text)[:2])
    declines = any(word in told[:60].lower() for word in ("can't", "cannot", "sorry", "unable"))
    return told if declines and "OpenAI" not in told and len(told) < 320 else ""


def decline(prompt: str, told: str, draw: Random) -> Lesson:
    parts = (draw.choice(OPENINGS), draw.choice(REASONS), draw.choice(OFFERS))
    return Lesson(prompt, told or " ".join(parts), "harmful")


def answers(rows: Sequence[Row]) -> list[Lesson]:
    """Harmless requests with their answers."""
    return [
        Lesson(row["prompt"], row["response"], "harmless")
        for row in rows
        if row.get("source") == "benign_instruct" and len(row["prompt"]) <= LONGEST
    ]


# -- other forms --------------------------------------------------------------


def closed_harmful(
    harmful: Sequence[tuple[str, str]], described: Sequence[Row], draw: Random
) -> Iterator[Lesson]:
    """Asked over a description of the picture, where the harm stands in either."""
    for wish, _ in harmful:
        told = decline("", "", draw).answer
        yield Lesson(closed(f'{draw.choice(PAGES)} "{wish}"', question(draw)), told, "closed")
    for row in described:
        seen = (row.get("meta") or {}).get("image_desc")
        if seen:
            yield Lesson(closed(seen, row["prompt"]), decline("", "", draw).answer, "closed")


def closed_harmless(harmless: Sequence[Lesson], draw: Random) -> Iterator[Lesson]:
    for lesson in harmless:
        seen = f'{draw.choice(PAGES)} "{lesson.prompt}"'
        yield Lesson(closed(seen, question(draw)), lesson.answer, "closed harmless")


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


def pictured(harmless: Sequence[Lesson], draw: Random) -> Iterator[Lesson]:
    """Harmless requests in a picture, in the words that the eyes of `embedded` put it."""
    for lesson in harmless:
        seen = f'Picture: "{lesson.prompt}" (0.{draw.randrange(90, 100)})'
        yield Lesson(f"{seen}\n{question(draw)}", lesson.answer, "picture")


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
