"""How much of an adapter to merge: as much as tells held-out lessons apart best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmguard.train.lessons import Lesson
from mmguard.train.proof import Bench, declines, plain
from mmguard.types import Model

SCALES = (1.0, 1.5, 2.0)
SAID = {"max_tokens": 12, "temperature": 0}


def settle(
    held: Sequence[Lesson], merged: Callable[[float], Model], bench: Bench
) -> tuple[float, dict[str, Any]]:
    """The scale with the most harmful requests declined, less the harmless ones, and all shares."""
    sides = {
        "harmful": [plain(item.prompt, SAID) for item in held if item.source == "harmful"],
        "harmless": [plain(item.prompt, SAID) for item in held if item.source != "harmful"],
    }
    found: dict[str, Any] = {}
    for scale in SCALES:
        model = merged(scale)
        found[str(scale)] = {side: declines(model, asked, bench) for side, asked in sides.items()}
    return max(SCALES, key=lambda scale: apart(found[str(scale)])), found


def apart(shares: Mapping[str, Any]) -> float:
    return float(shares["harmful"]["value"] - shares["harmless"]["value"])
