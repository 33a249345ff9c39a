"""Lessons for a detoxifier: a harmful answer, with or without its request, and a better one.

What is better keeps what is useful: answers that decline and say no more are the smaller
part, toxic sentences become neutral ones, and what was harmless stays as it was.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from mmguard import prompts
from mmguard.sentences import split
from mmguard.train.lessons import Lesson
from mmguard.types import Detector, Message, Request, Sample, Text

Row = Mapping[str, Any]
Pair = tuple[str, str, str]

COUNTS = {"useful": 350, "refusals": 70, "sentences": 140, "tainted": 70}
KEPT = 40
DRAFT = 800
BETTER = 420
# A second answer of the same model, or of whoever made it, is no part of an answer.
ENDS = re.compile(r"assistant\n|<end_of_turn>|<\|")
SIGNED = re.compile(r"As an AI(?: language model| assistant)?(?:[^,.]{0,40}),\s*(\w)")
# Played roles and their makers' names, which jailbreaks leave in answers.
PLAYED = re.compile(
    r"^\W*[A-Z][\w ]{0,14}\W{0,2}:|^\W*\(|^[a-z]|DAN|AIM|GPT|OpenAI|JailBreak|Machiavelli|\bOM\b"
)
DECLINES = re.compile(r"\b(can.t|cannot|can not|sorry|unable to|not able to|must decline)\b")


def detoxifier(
    rows: Sequence[Row], seed: int, detector: Detector, size: float = 1.0
) -> list[Lesson]:
    """All lessons that the rows make, in a drawn order; `size` scales how many of each.

    Labels err: a better answer counts only if the detector sees no harm in it either.
    """
    draw = Random(seed)
    useful, refusals = paired(rows)
    many = {name: int(count * size) for name, count in COUNTS.items()}
    found = [
        *clean(spread(useful, 2 * many["useful"], draw), detector)[: many["useful"]],
        *clean(spread(refusals, 2 * many["refusals"], draw), detector)[: many["refusals"]],
    ]
    lessons = [lesson(*pair, draw) for pair in found]
    lessons += sentences(rows, many["sentences"], draw)
    lessons += harmless(rows, many["tainted"], int(KEPT * size), draw)
    draw.shuffle(lessons)
    return lessons


def lesson(query: str, draft: str, better: str, draw: Random) -> Lesson:
    """In the prompt of the step `detoxify`, or in the one that shows the request too."""
    prompt = draw.choice((prompts.DETOXIFY, prompts.DETOXIFY_ASKED)) if query else prompts.DETOXIFY
    told = prompts.fill(prompt, query=query, answer=shorten(draft, DRAFT))
    return Lesson(told, shorten(better, BETTER), "detoxify")


def shorten(text: str, most: int) -> str:
    """Its first whole sentences, and at least one, in at most so many characters."""
    text = text.strip()
    if len(text) <= most:
        return text
    ends = [part.end for part in split(text) if part.end <= most]
    return text[: max(ends, default=most)].strip()


# -- answers to one request ---------------------------------------------------


def paired(rows: Sequence[Row]) -> tuple[list[Pair], list[Pair]]:
    """(request, harmful, safe) with a safe answer that helps, and with one that only declines.

    Rows that are pairs as they stand, and labelled answers to one request.
    """
    bad, good = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for row in rows:
        if row.get("harmful") and row.get("safe"):
            asked = str(row["prompt"]).strip()
            bad[asked].append(row["harmful"])
            good[asked].append(row["safe"])
        elif row.get("source") in ("gptfuzz_train", "jbb_artifacts", "refusal_direction"):
            asked = str((row.get("meta") or {}).get("goal") or row["prompt"]).strip()
            (bad if row.get("response_harm") else good)[asked].append(row["response"])
    useful: list[Pair] = []
    refusals: list[Pair] = []
    for asked in sorted(good.keys() & bad.keys()):
        for i, said in enumerate(dict.fromkeys(map(tidy, good[asked]))):
            # A harmful answer that declines was labelled by a model that erred.
            pair = (asked, bad[asked][i % len(bad[asked])], said)
            if (
                not PLAYED.search(said[:200])
                and said.isascii()
                and len(said) > 60
                and not declines(pair[1])
            ):
                rest = substance(said)
                (useful if rest else refusals).append((*pair[:2], rest or said))
    return useful, refusals


def tidy(text: str) -> str:
    """One answer in its own voice: nothing after its end, and no talk of being a model."""
    text = ENDS.split(text.strip())[0]
    return SIGNED.sub(lambda found: found[1].upper(), text).strip()


def substance(said: str) -> str:
    """What an answer says after it has declined and spoken of itself; empty if too little."""
    rest = re.split(r"(?<=[.!?])\s+", said)
    while rest and (DECLINES.search(rest[0].lower()) or OWN.search(rest[0])):
        del rest[0]
    while rest and OFFER.search(rest[-1]):
        del rest[-1]
    kept = " ".join(rest)
    return kept if len(kept) >= LEAST and not DECLINES.search(kept.lower()) else ""


def declines(text: str) -> bool:
    return bool(DECLINES.search(text[:120].lower()))


OFFER = re.compile(r"feel free|let me know|any other|anything else|something else")
OWN = re.compile(r"\bAI\b|my (?:programming|purpose)|ethical guidelines")
LEAST = 120


def spread(pairs: Sequence[Pair], most: int | None, draw: Random) -> list[Pair]:
    """So many of them, from as many requests as there are, each in turn."""
    groups = defaultdict[str, list[Pair]](list)
    for pair in draw.sample(pairs, len(pairs)):
        groups[pair[0]].append(pair)
    ranks = [(rank, pair) for group in groups.values() for rank, pair in enumerate(group)]
    found = [pair for _, pair in sorted(ranks, key=lambda item: item[0])]
    return found[:most]


def clean(pairs: Sequence[Pair], detector: Detector) -> list[Pair]:
    """Those in whose better answer the detector sees no harm at all."""
    at = detector.thresholds.get("medium", 0.5) / 4
    found = detector.score([sample(asked, said) for asked, _, said in pairs])
    return [pair for pair, finding in zip(pairs, found, strict=True) if finding.score < at]


def sample(asked: str, said: str) -> Sample:
    return Sample(Request((Message("user", (Text(asked),)),)), said)


# -- what can be kept ---------------------------------------------------------


def sentences(rows: Sequence[Row], most: int, draw: Random) -> Iterator[Lesson]:
    """Toxic sentences as neutral ones."""
    known = [row for row in rows if row.get("toxic") and row.get("neutral")]
    for row in draw.sample(known, min(most, len(known))):
        better = draw.choice(row["neutral"])
        yield Lesson(prompts.fill(prompts.DETOXIFY, answer=row["toxic"]), better, "sentence")


def harmless(rows: Sequence[Row], tainted: int, kept: int, draw: Random) -> Iterator[Lesson]:
    """Harmless answers, which stay, and some with a hateful sentence in them, which goes."""
    plain = [
        row
        for row in rows
        if row.get("source") == "benign_instruct" and 60 <= len(row["response"]) <= BETTER
    ]
    foul = [row for row in rows if row.get("source") == "aux_hatecheck" and row["response_harm"]]
    for i, row in enumerate(draw.sample(plain, min(tainted + kept, len(plain)))):
        said = row["response"].strip()
        drawn = [said, draw.choice(foul)["response"].strip()] if i < tainted and foul else [said]
        draw.shuffle(drawn)
        told = lesson(row["prompt"], " ".join(drawn), said, draw)
        yield Lesson(told.prompt, told.answer, "tainted" if len(drawn) > 1 else "kept")
