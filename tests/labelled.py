"""Labelled rows for the recipes that train on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from mmguard.train.pack import CANARY

Row = dict[str, Any]
HARM = [pair.response for pair in CANARY.harmful]
PLAIN = [pair.response for pair in CANARY.harmless]


def make_row(number: int, harmful: bool, source: str = "made") -> Row:
    draw = Random(number)
    pairs = CANARY.harmful if harmful else CANARY.harmless
    words = draw.choice(pairs).response.split()
    start = draw.randrange(3)
    return {
        "source": source,
        "prompt": draw.choice([pair.prompt for pair in pairs]) + f" {number}",
        "response": " ".join(words[start:]),
        "prompt_harm": int(harmful),
        "response_harm": int(harmful),
        "refusal": 0,
        "category": "hate" if harmful else None,
        "license": "CC0-1.0",
    }


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
