"""The training loop: the same weights for the same seed, and again from where it stopped.

Every batch is drawn before the first step, from the seed alone, so a run that was cut off
goes on with the batch it had not seen.
"""

from __future__ import annotations

import hashlib
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
    top, `taught` the teacher's part of a target, `later` how often a window may come from
    further on; `times` overrides how often a row of a source is drawn, and `hard` multiplies it
    for harmless answers to alarming requests.
    """

    passes: float = 3
    batch: int = 32
    rate: float = 6e-5
    warmup: float = 0.06
    average: float = 0.998
    pairs: float = 0.15
    taught: float = 0.5
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


class Run:
    """A run in its folder: network, averaged weights, optimiser and the step they are at."""

    def __init__(self, network: Network, recipe: Recipe, steps: int, folder: Path) -> None:
        self.network, self.recipe, self.steps = network.to(recipe.device), recipe, steps
        self.teacher: Network | None = None
        self.path = folder / "checkpoint.pt"
        learnt = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(learnt, lr=recipe.rate, weight_decay=0.01, fused=True)
        self.average = [p.detach().clone() for p in learnt]
        self.learnt, self.step = learnt, 0

    def advance(self, batch: Batch) -> float:
        """One step on one batch; returns its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate * self.slope()
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimiser.step()
        self.step += 1
        self.blend()
        return float(loss.detach())

    def slope(self) -> float:
        """The share of the rate at this step: up, then straight down."""
        rise = max(1, int(self.recipe.warmup * self.steps))
        return min((self.step + 1) / rise, (self.steps - self.step) / max(1, self.steps - rise))

    def loss(self, batch: Batch) -> Tensor:
        device = self.recipe.device
        with half(device):
            fed = collate(batch.windows, device)
            logits = self.network(*fed).float()
            wanted = self.soften(targets(batch.examples).to(device), fed)
        loss = loss_of(logits, wanted)
        return loss + contrast(logits[::2], logits[1::2]) if batch.paired else loss

    def soften(self, wanted: Tensor, fed: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The targets, blended with what the teacher says, which also fills their gaps."""
        if self.teacher is None:
            return wanted
        with torch.no_grad():
            said = self.teacher(*fed).float().sigmoid()
        share = self.recipe.taught
        return torch.where(wanted.isnan(), said, share * said + (1 - share) * wanted)

    def blend(self) -> None:
        # Early weights are forgotten: the average may not remember more than it has seen.
        keep = min(self.recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learnt], 1 - keep)

    def save(self, key: str) -> None:
        state = {
            "key": key,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.path)

    def resume(self, key: str) -> None:
        """Go on from the checkpoint, if it is of a run on the same data with the same recipe."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, map_location=self.recipe.device, weights_only=True)
        if state["key"] != key:
            return
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step = state["average"], state["step"]

    def finish(self) -> Network:
        """The network with its averaged weights."""
        with torch.no_grad():
            for weight, mean in zip(self.learnt, self.average, strict=True):
                weight.copy_(mean)
        return self.network.eval()


def half(device: str) -> Any:
    if device == "mps":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def fit(
    run: Run,
    batches: Callable[[int], list[Batch]],
    key: str,
    tick: Callable[[int, int, float], object],
) -> Network:
    """Train to the last step; `batches` gives those of one pass. Saves as it goes."""
    run.resume(key)
    done = 0
    for turn in range(math.ceil(run.recipe.passes)):
        for batch in batches(turn):
            done += 1
            if run.step < done <= run.steps:
                loss = run.advance(batch)
                tick(run.step, run.steps, loss)
                if run.step % run.recipe.save_every == 0:
                    run.save(key)
    run.save(key)
    return run.finish()


def key_of(*parts: object) -> str:
    """One string that differs when any of the parts does."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
