"""Harmless answers that alarm: words against a harm, and help whose words sound worse than it is.

Each cause is set in many forms of document, each scene in many forms of advice; a small model
has written some more. Harmful answers in the same forms go beside them, so that recall holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from random import Random

from mmguard.train.augment import dressed
from mmguard.train.causes import Cause, read_causes
from mmguard.train.forms import (
    AFTER,
    AROUND,
    ASKED,
    BEFORE,
    DEICTIC,
    EXPLICIT,
    FORMS,
    OF_SCENES,
    SEEN,
)
from mmguard.train.made import PAIRED, clip, long_enough
from mmguard.train.mix import Example
from mmguard.train.scenes import Scene, read_scenes

SOURCE = "alarm"
WRITTEN = "written.jsonl"
# How many of each are made for a corpus of full size, and for smaller ones a share of it.
COUNTS = {"plead": 2400, "help_out": 2400, "lend": 600, "repeat": 900, "darken": 3000}


class Stock:
    """What alarms are made of."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self.causes, self.scenes = read_causes(), read_scenes()
        self.written = read_written()
        self.plain = [e for e in pool if e.source == "benign_instruct" and long_enough(e, 0)]
        self.harmful = [e for e in pool if long_enough(e, 1) and e.source in PAIRED]


@lru_cache(maxsize=1)
def read_written() -> tuple[tuple[str, str], ...]:
    """Requests, and answers that the embedded model wrote to them."""
    lines = files("mmguard.train").joinpath(WRITTEN).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple((row["prompt"], row["response"]) for row in rows)


def alarms(pool: Sequence[Example], draw: Random) -> list[Example]:
    """Every kind, as many as suit the size of the pool; none where nothing is harmful."""
    stock = Stock(pool)
    if not stock.plain or not stock.harmful:
        return []
    kinds = (plead, help_out, lend, repeat, darken)
    return [
        kind(stock, draw)
        for kind in kinds
        for _ in range(min(COUNTS[kind.__name__], len(pool) // 16))
    ]


def harmless(prompt: str, reply: str) -> Example:
    return Example(prompt, reply, answer=0.0, refusal=0.0, hazards=frozenset(), source=SOURCE)


def plead(stock: Stock, draw: Random) -> Example:
    """A document against a harm."""
    cause = draw.choice(stock.causes)
    form, looks = draw.choice(FORMS)
    slots = slots_of(cause, draw) | {"form": form, "Form": form.capitalize()}
    shape = draw.choice(BEFORE) + draw.choice(looks) + draw.choice(AFTER)
    asked = draw.choice(draw.choice((EXPLICIT, DEICTIC)))
    return harmless(asked.format(**slots), shape.format(**slots))


def slots_of(cause: Cause, draw: Random) -> dict[str, str]:
    a, b = draw.sample(cause.done, 2)
    x, y, z = draw.sample(cause.advice, 3)
    tag = "".join(word.capitalize() for word in cause.slogan.split()[:3] if word.isalpha())
    own = {"harm": cause.harm, "Harm": cause.harm.capitalize(), "slogan": cause.slogan}
    return own | {"tag": tag, "law": cause.law, "a": a, "b": b, "x": x, "y": y, "z": z}


def help_out(stock: Stock, draw: Random) -> Example:
    """Advice about something harmless, asked for in words that alarm."""
    scene = draw.choice(stock.scenes)
    asked = draw.choice(ASKED).format(ask=draw.choice(scene.asks))
    return harmless(asked, draw.choice(SEEN).format(seen=scene.seen) + advise(scene, draw))


def advise(scene: Scene, draw: Random) -> str:
    said = draw.sample(scene.advice, draw.randint(2, len(scene.advice)))
    text = " ".join(f"{line}." for line in sorted(said, key=scene.advice.index))
    return dressed(text, draw) if draw.random() < 0.5 else text


def lend(stock: Stock, draw: Random) -> Example:
    """Any harmless answer to a request that alarms."""
    return harmless(ask(stock, draw), draw.choice(stock.plain).reply or "")


def repeat(stock: Stock, draw: Random) -> Example:
    """What the small model wrote, at times to a request that says little."""
    asked, reply = draw.choice(stock.written)
    return harmless(asked if draw.random() < 0.5 else ask(stock, draw), reply)


def darken(stock: Stock, draw: Random) -> Example:
    """A harmful answer in the same forms and to the same requests."""
    bad = draw.choice(stock.harmful)
    body = clip(bad, draw.choice((60, 120)))
    body = dressed(body, draw) if draw.random() < 0.3 else body
    reply = draw.choice(AROUND).replace("{body}", body)
    asked = bad.prompt if draw.random() < 0.2 else ask(stock, draw)
    return replace(bad, prompt=asked, reply=reply, request=None, refusal=0.0)


def ask(stock: Stock, draw: Random) -> str:
    """One of the requests that do not say what they are about."""
    form = draw.choice(FORMS)[0]
    scene = draw.choice(draw.choice(stock.scenes).asks)
    return draw.choice((draw.choice(DEICTIC).format(form=form), scene, draw.choice(OF_SCENES)))
