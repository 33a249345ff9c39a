"""Fit the encoder: its batches, in windows of text, and its loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor

from mmguard.detect.windows import Shape, Window
from mmguard.train.augment import vary
from mmguard.train.loop import Pace, Run, Tick
from mmguard.train.mix import TIMES, Contrast, Example, one_pass
from mmguard.train.network import Network, collate, contrast, loss_of, targets

Cut = tuple[Window, Example]


class Encode(Protocol):
    """Text to token ids, cleaned."""

    def __call__(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run.

    `average` is the decay of the averaged weights, `pairs` the share of contrast batches on
    top, `taught` the teacher's part of a target except for the sources in `untaught`, on which
    it errs, `later` how often a window may come from further on; `times` overrides how often a
    row of a source is drawn, and `hard` multiplies it for harmless answers to alarming requests.
    """

    passes: float = 3
    batch: int = 32
    rate: float = 6e-5
    warmup: float = 0.06
    average: float = 0.998
    pairs: float = 0.15
    taught: float = 0.5
    untaught: tuple[str, ...] = ("alarm",)
    later: float = 0.3
    times: tuple[tuple[str, float], ...] = ()
    hard: float = 1.0
    seed: int = 0
    device: str = "cpu"
    save_every: int = 100
    shape: Shape = field(default_factory=Shape)


@dataclass(frozen=True)
class Batch:
    """Windows and the examples they were cut from; `paired` is better, worse, better, ..."""

    windows: Sequence[Window]
    examples: Sequence[Example]
    paired: bool = False


def plan(
    pool: Sequence[Example], pairs: Sequence[Contrast], encode: Encode, recipe: Recipe, turn: int
) -> list[Batch]:
    """The batches of pass number `turn`."""
    draw = Random(f"{recipe.seed} {turn}")
    items = one_pass(pool, draw, {**TIMES, **dict(recipe.times)}, recipe.hard)
    cuts = [cut(vary(item, draw), encode, recipe, draw) for item in items]
    batches = [batch_of(part) for part in buckets(cuts, recipe.batch, draw)]
    wanted = int(recipe.pairs * len(batches)) if pairs else 0
    for _ in range(wanted):
        drawn = draw.sample(pairs, min(len(pairs), recipe.batch // 2))
        both = [half for pair in drawn for half in (pair.better, pair.worse)]
        halves = [cut(half, encode, replace(recipe, later=0.0), draw) for half in both]
        batches.append(batch_of(halves, paired=True))
    draw.shuffle(batches)
    return batches


def batch_of(cuts: Sequence[Cut], paired: bool = False) -> Batch:
    return Batch([window for window, _ in cuts], [example for _, example in cuts], paired)


def cut(example: Example, encode: Encode, recipe: Recipe, draw: Random) -> Cut:
    """One window of an example: mostly the first, at times one from further on."""
    asked = encode(example.prompt)
    if example.reply is None:
        found = recipe.shape.alone(asked)
    else:
        found = recipe.shape.pair(asked, encode(example.reply))
    if draw.random() < 1 - recipe.later:
        return found[0], example
    return draw.choice(found), example


def buckets(cuts: list[Cut], size: int, draw: Random) -> Iterator[list[Cut]]:
    """Batches of about equal lengths, so that little of them is padding."""
    for start in range(0, len(cuts), size * 24):
        part = sorted(cuts[start : start + size * 24], key=lambda c: (len(c[0].ids), c[0].ids))
        batches = [part[i : i + size] for i in range(0, len(part), size)]
        draw.shuffle(batches)
        yield from batches


class Fitting(Run[Batch]):
    """A network that learns, from a teacher too if it has one."""

    def __init__(self, network: Network, recipe: Recipe, steps: int, folder: Path) -> None:
        self.network, self.recipe = network.to(recipe.device), recipe
        self.teacher: Network | None = None
        pace = Pace(
            recipe.rate,
            steps,
            warmup=recipe.warmup,
            shrink=0.01,
            average=recipe.average,
            save_every=recipe.save_every,
        )
        super().__init__(network, pace, folder)

    def loss(self, batch: Batch) -> Tensor:
        device = self.recipe.device
        with half(device):
            fed = collate(batch.windows, device)
            logits = self.network(*fed).float()
            wanted = self.soften(targets(batch.examples).to(device), fed, self.shares(batch))
        loss = loss_of(logits, wanted)
        return loss + contrast(logits[::2], logits[1::2]) if batch.paired else loss

    def shares(self, batch: Batch) -> Tensor:
        """The teacher's part of each example's targets, [batch, 1]."""
        recipe = self.recipe
        parts = [recipe.taught * (e.source not in recipe.untaught) for e in batch.examples]
        return torch.tensor(parts, device=recipe.device)[:, None]

    def soften(self, wanted: Tensor, fed: tuple[Tensor, Tensor, Tensor], share: Tensor) -> Tensor:
        """The targets, blended with what the teacher says, which also fills their gaps."""
        if self.teacher is None:
            return wanted
        with torch.no_grad():
            said = self.teacher(*fed).float().sigmoid()
        return torch.where(wanted.isnan(), said, share * said + (1 - share) * wanted)


def half(device: str) -> Any:
    if device == "mps":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def fit(run: Fitting, batches: Callable[[int], list[Batch]], key: str, tick: Tick) -> Network:
    """Train to the last step; `batches` gives those of one pass."""
    turns = range(math.ceil(run.recipe.passes))
    run.train((batch for turn in turns for batch in batches(turn)), key, tick)
    return run.network.eval()
