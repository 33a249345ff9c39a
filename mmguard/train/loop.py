"""The training loop: the same weights for the same seed, and again from where it stopped.

Every batch is drawn before the first step, from the seed alone, so a run that was cut off
goes on with the batch it had not seen.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Tick = Callable[[int, int, float], object]
B = TypeVar("B")
# Of the checkpoints: one of another form is left alone.
FORM = 2


@dataclass(frozen=True)
class Pace:
    """How fast a run goes, and for how many `steps`.

    `warmup` is the share of steps in which the rate rises, `shrink` the decay of weights,
    `average` that of the averaged weights; with 0 the last ones count alone.
    """

    rate: float
    steps: int
    warmup: float = 0.06
    shrink: float = 0.0
    average: float = 0.0
    save_every: int = 100


class Run(ABC, Generic[B]):
    """A run in its folder: weights that learn, their average, optimiser and step."""

    def __init__(self, network: nn.Module, pace: Pace, folder: Path) -> None:
        self.pace, self.step, self.path = pace, 0, folder / "checkpoint.pt"
        self.learnt = [p for p in network.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.learnt]
        self.optimiser = torch.optim.AdamW(
            self.learnt, lr=pace.rate, weight_decay=pace.shrink, fused=True
        )

    @abstractmethod
    def loss(self, batch: B) -> Tensor:
        """Of one batch, with its graph."""

    def train(self, batches: Iterable[B], key: str, tick: Tick) -> None:
        """To the last step, saving on the way; the weights are then their average.

        Goes on from the folder's checkpoint if that was saved under the same `key`.
        """
        self.resume(key)
        for number, batch in enumerate(batches):
            if number < self.step:
                continue
            if self.step == self.pace.steps:
                break
            loss = self.advance(batch)
            tick(self.step, self.pace.steps, loss)
            if self.step % self.pace.save_every == 0:
                self.save(key)
        self.save(key)
        copy(self.average, self.learnt)

    def advance(self, batch: B) -> float:
        """One step on one batch; returns its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.pace.rate * self.slope()
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
        steps = self.pace.steps
        rise = max(1, int(self.pace.warmup * steps))
        return min((self.step + 1) / rise, (steps - self.step) / max(1, steps - rise))

    def blend(self) -> None:
        # Early weights are forgotten: the average may not remember more than it has seen.
        keep = min(self.pace.average, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learnt], 1 - keep)

    def save(self, key: str) -> None:
        state = {
            "key": key,
            "step": self.step,
            "learnt": [p.detach() for p in self.learnt],
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.path)

    def resume(self, key: str) -> None:
        """What the checkpoint holds, if it is of the same data and numbers."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["key"] != key:
            return
        copy(state["learnt"], self.learnt)
        copy(state["average"], self.average)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


def copy(values: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


def key_of(*parts: object) -> str:
    """One string that differs when any of the parts does."""
    return hashlib.sha256(repr((FORM, parts)).encode()).hexdigest()
