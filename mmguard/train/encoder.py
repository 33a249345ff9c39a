"""The recipe of the encoder detector, from rows of data to a network; resumable.

Members are trained from different seeds and averaged. The average teaches a student, which
may have fewer layers: it learns from the labels, and from what its teacher says where there
are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from mmguard.detect.windows import Shape
from mmguard.errors import InputError
from mmguard.train.augment import refusals, shorten
from mmguard.train.fit import Batch, Encode, Recipe, Run, fit, key_of, plan
from mmguard.train.mix import PICTURED, Contrast, Example, Row, bare, contrasts, examples
from mmguard.train.network import Network, keep_layers, load_network

REFUSALS = 1500
Tick = Callable[[str, int, int, float], object]


@dataclass(frozen=True)
class Corpus:
    """All that can be learnt from: examples, and pairs of answers of which one is worse."""

    pool: Sequence[Example]
    pairs: Sequence[Contrast]


@dataclass(frozen=True)
class Stages:
    """How a network comes about, and where its unfinished work lies.

    `base` is the folder or hub name of a BERT checkpoint with a `tokenizer.json`.
    """

    base: str
    work: Path
    members: Sequence[Recipe]
    student: Recipe
    layers: int
    tick: Tick = field(default=lambda stage, step, steps, loss: None)


def stages(base: str, work: Path, tick: Tick, **numbers: Any) -> Stages:
    """The stages that made the shipped bundle; `numbers` are `passes`, `layers`, `seed`, `device`.

    The second member learns without contrast pairs: the average of two that differ is better
    than either.
    """
    seed, passes, device = (numbers.get(n, d) for n, d in (("seed", 0), ("passes", 2), ("device", "cpu")))
    first = Recipe(passes=passes, seed=seed, device=device, shape=Shape(window=192))
    second = replace(first, seed=seed + 1, pairs=0.0)
    student = replace(first, seed=seed + 2, passes=max(1, passes - 1))
    return Stages(base, work, (first, second), student, numbers.get("layers", 6), tick)


def gather(rows: Sequence[Row], seed: int = 0) -> Corpus:
    """The rows as examples, with shortened answers and refusals that repeat what was asked."""
    pool = examples(rows)
    if not any(e.answer is not None for e in pool):
        raise InputError("the data has no row with a response and response_harm: nothing to learn")
    asked = sorted({e.prompt for e in pool if is_plain(e)})
    pool += [found for row in rows if row.get("response") and (found := bare(row))]
    pool += [shorten(e) for e in pool if e.source == "benign_instruct" and e.reply]
    pool += refusals(asked, Random(seed), REFUSALS) if asked else []
    return Corpus(pool, contrasts(rows))


def is_plain(example: Example) -> bool:
    """Whether the request is harmful by its own words, and short."""
    named = example.source not in PICTURED
    return example.request == 1 and named and 0 < len(example.prompt) < 300


def train_network(corpus: Corpus, stages: Stages, encode: Encode) -> Network:
    """Members, their average, and the student that it teaches; goes on where it stopped."""
    trained = []
    for i, recipe in enumerate(stages.members):
        torch.manual_seed(recipe.seed)
        course = Course(f"member {i + 1}", recipe, corpus, encode, stages)
        trained.append(course.train(load_network(stages.base)))
    teacher = soup(trained)
    student = keep_layers(deepcopy(teacher), stages.layers)
    return Course("student", stages.student, corpus, encode, stages).train(student, teacher)


def soup(networks: Sequence[Network]) -> Network:
    """The network whose weights are the mean of all (Wortsman et al., arXiv 2203.05482)."""
    made = deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    made.load_state_dict(
        {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}
    )
    return made.eval()


@dataclass(frozen=True)
class Course:
    """One named run on the corpus."""

    name: str
    recipe: Recipe
    corpus: Corpus
    encode: Encode
    stages: Stages

    def train(self, network: Network, teacher: Network | None = None) -> Network:
        """The run to its end, from its checkpoint if it has one for the same data and recipe."""
        first = self.batches(0)
        folder = self.stages.work / self.name.replace(" ", "-")
        run = Run(network, self.recipe, len(first) * self.recipe.passes, folder)
        run.teacher = None if teacher is None else teacher.to(self.recipe.device)
        key = key_of(self.recipe, [batch.windows for batch in first])
        return fit(run, lambda turn: self.batches(turn)[: len(first)], key, self.tick)

    def batches(self, turn: int) -> list[Batch]:
        return plan(self.corpus.pool, self.corpus.pairs, self.encode, self.recipe, turn)

    def tick(self, step: int, steps: int, loss: float) -> None:
        self.stages.tick(self.name, step, steps, loss)
