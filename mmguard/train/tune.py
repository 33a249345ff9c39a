"""Tune adapters: the same weights for the same seed, and again from where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmguard.train.fit import key_of
from mmguard.train.lessons import IGNORED, Lesson, Limits, Line, batches, collate, line
from mmguard.train.lora import Lora, graft, restore, weights

Tick = Callable[[int, int, float], object]


@dataclass(frozen=True)
class Plan:
    """The numbers of a run; `tokens` is a batch's size, `first` the lowest layer that learns."""

    rank: int = 8
    scale: float = 2.0
    first: int = 15
    rate: float = 4e-4
    tokens: int = 1400
    passes: int = 1
    seed: int = 0
    save_every: int = 25
    limits: Limits = field(default_factory=Limits)


class Tuning:
    """A run in its folder: adapters, optimiser and the step they are at."""

    def __init__(self, model: Any, plan: Plan, steps: int, folder: Path) -> None:
        self.model, self.plan, self.steps, self.step = model, plan, steps, 0
        torch.manual_seed(plan.seed)
        self.grown: dict[str, Lora] = graft(model, plan.rank, plan.scale, plan.first)
        self.learnt = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.learnt, lr=plan.rate, weight_decay=0.0)
        self.path = folder / "checkpoint.pt"

    def advance(self, batch: Sequence[Line]) -> float:
        """One step on one batch; returns its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.rate * self.slope()
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def slope(self) -> float:
        """The share of the rate at this step: up, then straight down."""
        rise = max(1, self.steps // 16)
        return min((self.step + 1) / rise, (self.steps - self.step) / max(1, self.steps - rise))

    def loss(self, batch: Sequence[Line]) -> Tensor:
        """Of the answers' tokens alone. Padding stands after them, where no answer looks."""
        ids, wanted = collate(batch)
        states = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        told = wanted != IGNORED
        return cross_entropy(self.model.lm_head(states[told]).float(), wanted[told])

    def save(self, key: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        adapters = [p.detach() for p in self.learnt]
        state = {"key": key, "step": self.step, "adapters": adapters}
        fresh = self.path.with_suffix(".new")
        torch.save({**state, "optimiser": self.optimiser.state_dict()}, fresh)
        fresh.replace(self.path)

    def resume(self, key: str) -> None:
        """Go on from the checkpoint, if it is of the same lessons by the same plan."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, weights_only=True)
        if state["key"] != key:
            return
        with torch.no_grad():
            for weight, saved in zip(self.learnt, state["adapters"], strict=True):
                weight.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


@dataclass(frozen=True)
class Pupil:
    """Who learns: a model, its tokenizer, and the adapters it has from an earlier stage."""

    model: Any
    tokenizer: Any
    start: Mapping[str, Tensor] = field(default_factory=dict)


def tune(
    pupil: Pupil, lessons: Sequence[Lesson], plan: Plan, folder: Path, tick: Tick
) -> dict[str, Tensor]:
    """Teach the model all lessons; returns the adapters' weights. The pupil's model is changed."""
    lines = [found for item in lessons if (found := line(item, pupil.tokenizer, plan.limits))]
    drawn = [
        batch
        for turn in range(plan.passes)
        for batch in batches(lines, plan.tokens, Random(f"{plan.seed} {turn}"))
    ]
    run = Tuning(pupil.model.train(), plan, len(drawn), folder)
    restore(run.grown, pupil.start)
    begun = [f"{name} {float(pupil.start[name].sum())}" for name in sorted(pupil.start)]
    key = key_of(plan, drawn, *begun)
    run.resume(key)
    for batch in drawn[run.step :]:
        loss = run.advance(batch)
        tick(run.step, run.steps, loss)
        if run.step % plan.save_every == 0:
            run.save(key)
    run.save(key)
    return weights(run.grown)
