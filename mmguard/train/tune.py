"""Tune adapters of a language model on lessons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmguard.train.lessons import IGNORED, Lesson, Limits, Line, batches, collate, line
from mmguard.train.loop import Pace, Run, Tick, key_of
from mmguard.train.lora import Lora, graft, restore, weights


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


class Tuning(Run[Sequence[Line]]):
    """Adapters that learn on a frozen model."""

    def __init__(self, model: Any, plan: Plan, steps: int, folder: Path) -> None:
        torch.manual_seed(plan.seed)
        self.model = model
        self.grown: dict[str, Lora] = graft(model, plan.rank, plan.scale, plan.first)
        pace = Pace(plan.rate, steps, save_every=plan.save_every)
        super().__init__(model, pace, folder)

    def loss(self, batch: Sequence[Line]) -> Tensor:
        """Of the answers' tokens alone. Padding stands after them, where no answer looks."""
        ids, wanted = collate(batch)
        states = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        told = wanted != IGNORED
        return cross_entropy(self.model.lm_head(states[told]).float(), wanted[told])


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
    run.train(drawn, key_of(plan, drawn, begun), tick)
    return weights(run.grown)
