"""Which rows an encoder learns from, how often, and what each says about which head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mmguard.detect.hazards import HAZARDS

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """Texts, and what is known of them: 0 to 1, or `None` where nobody said."""

    prompt: str
    reply: str | None = None
    answer: float | None = None
    request: float | None = None
    refusal: float | None = None
    hazards: frozenset[str] | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two answers to one request, the second worse than the first."""

    better: Example
    worse: Example


# How often a row is drawn in one pass. Chit-chat is another domain; bare toxic texts are no
# answers; few human labels of good answers are worth many.
TIMES = {
    "aux_hatecheck": 0.1,
    "aux_surge_toxicity": 0.3,
    "aux_toxigen_human": 0.07,
    "benign_instruct": 1.0,
    "diasafety_train": 0.35,
    "gptfuzz_train": 0.6,
    "harmfulqa": 0.4,
    "llm_adaptive_attacks": 1.2,
    "pyrit_harm": 3.0,
    "pyrit_refusal": 3.0,
    "refusal_direction": 1.2,
    "short": 0.3,
    "vlsbench": 0.4,
}
# Its terms are not stated, so nothing that is shipped may learn from it.
LEFT_OUT = ("shadow_alignment",)
# Requests of these sources are harmful through their picture alone.
PICTURED = ("vlsbench", "msts_en_mm")
# The native categories of the data in the words of the MLCommons hazard list.
NATIVE = {
    "violent_crimes": "violent crimes|physical harm|violence|murder|terrorism|weapon|kill"
    "|hate crime|poison|rioting|assault|abuse and physical|bomb",
    "non_violent_crimes": "non-violent crimes|economic harm|fraud|theft|financial|phis|scam"
    "|piracy|property crimes|drug|counterfeit|illegal activity|cheating|trafficking",
    "sex_crimes": "sex-related crimes",
    "child_exploitation": "child",
    "defamation": "libel|defamation",
    "specialized_advice": "expert advice|unauthorized expertise|risk ignorance|tailored",
    "privacy": "privacy|stalking|identity theft|surveillance",
    "intellectual_property": "intellectual property|piracy|copyright",
    "indiscriminate_weapons": "bomb|cbrn|hazardous material",
    "hate": "hate|discrimination|biased opinion|toxicity agreement|offending user|racism",
    "self_harm": "suicide|self-harm|self_harm|self-injury",
    "sexual_content": "sexual/adult|sexual_content|adult content|erotic|pornograph",
    "elections": "election|government decision",
    "code_abuse": "malware|hacking|virus|exploits|cybercrime|spyware|trojan|ransomware",
}


def hazards(category: str | None, harmful: bool) -> frozenset[str] | None:
    """The hazards that a native category names; none for what is harmless."""
    if not harmful:
        return frozenset()
    name = (category or "").lower()
    found = frozenset(
        hazard for hazard in HAZARDS.values() if any(w in name for w in NATIVE[hazard].split("|"))
    )
    if "non-violent" in name:
        found -= {"violent_crimes"}
    return found or None


def examples(rows: Sequence[Row]) -> list[Example]:
    """The rows as examples; rows that say nothing are left out."""
    found = (example(row) for row in rows if row.get("source") not in LEFT_OUT)
    return [e for e in found if not (e.answer is e.request is e.refusal is None)]


def example(row: Row) -> Example:
    source, meta = str(row.get("source", "")), row.get("meta") or {}
    prompt, reply = row.get("prompt") or "", row.get("response")
    request, answer = number(row.get("prompt_harm")), number(row.get("response_harm"))
    if source in PICTURED:
        described = meta.get("image_desc")
        prompt = f"{prompt}\n{described}" if described and reply is None else prompt
        request = request if described and reply is None else None
    harmful = bool(answer if answer is not None else request)
    refusal = number(row.get("refusal"))
    if refusal is None and reply and "refusal_rule" in meta:
        refusal = 0.1 + 0.8 * float(meta["refusal_rule"])
    return Example(
        prompt, reply, answer, request, refusal, hazards(row.get("category"), harmful), source
    )


def number(value: Any) -> float | None:
    return None if value is None else float(value)


def bare(row: Row) -> Example | None:
    """An attack's answer with the bare behaviour as its request."""
    goal = (row.get("meta") or {}).get("goal")
    if not goal or goal == row.get("prompt"):
        return None
    return replace(example(row), prompt=goal)


def contrasts(rows: Sequence[Row]) -> list[Contrast]:
    """Pairs of answers: rows with `harmful` and `safe`, or with `meta.pref` and `meta.pair`."""
    found = [
        Contrast(
            Example(row["prompt"], row["safe"], 0.0, refusal=None),
            Example(row["prompt"], row["harmful"], 1.0, refusal=0.0),
        )
        for row in rows
        if row.get("harmful") and row.get("safe")
    ]
    halves: dict[str, dict[str, Row]] = {}
    for row in rows:
        meta = row.get("meta") or {}
        if meta.get("pref") in ("chosen", "rejected"):
            halves.setdefault(f"{row['source']} {meta['pair']}", {})[meta["pref"]] = row
    return found + [preference(pair) for pair in halves.values() if len(pair) == 2]


def preference(pair: Mapping[str, Row]) -> Contrast:
    """Neither answer has a label of its own: only which of the two is worse is known."""
    better, worse = (
        Example((row["meta"].get("last_user") or row.get("prompt") or ""), row["response"])
        for row in (pair["chosen"], pair["rejected"])
    )
    return Contrast(better, worse)


def is_hard(example: Example) -> bool:
    """Whether it is a harmless answer to an alarming request or picture."""
    return example.answer == 0 and (example.request == 1 or example.source in PICTURED)


def one_pass(
    pool: Sequence[Example], draw: Random, times: Mapping[str, float] = TIMES, hard: float = 1.0
) -> list[Example]:
    """Every example about as often as its source says, hard ones `hard` times that."""
    drawn = []
    for item in pool:
        often = times.get(item.source, 1.0) * (hard if is_hard(item) else 1.0)
        drawn += [item] * (int(often) + (draw.random() < often % 1))
    draw.shuffle(drawn)
    return drawn
