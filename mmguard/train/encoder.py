"""The recipe of the encoder detector, from rows of data to a bundle; resumable.

Members are trained from different seeds and averaged. The average teaches students, each cut
from the one before to fewer layers: they learn from the labels, and from what their teacher
says where there are none. One that is cut no further is averaged with what it was. A linear
model of the same rows goes beside the last of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from mmguard.bundles import prove
from mmguard.detect.encoder import EncoderDetector, Parts
from mmguard.detect.windows import Shape
from mmguard.detect.wording import FILE, Wording
from mmguard.errors import InputError
from mmguard.train.alarms import alarms
from mmguard.train.export import export
from mmguard.train.fit import Batch, Encode, Fitting, Recipe, fit, plan
from mmguard.train.linear import fit_heads, pack
from mmguard.train.loop import key_of
from mmguard.train.made import make
from mmguard.train.measure import load_rows
from mmguard.train.mix import LEFT_OUT, Contrast, Example, Row, bare, contrasts, examples
from mmguard.train.network import HEADS, Network, keep_layers, load_network
from mmguard.train.pack import CANARY, calibrate, judge, manifest, split, write
from mmguard.train.report import describe, tally

# A student of a student has learnt most already: its part of a pass, and how much oftener it
# sees harmless answers to alarming requests.
AGAIN, HARD = 0.45, 1.5
# The third and later ones are there for what alarms and means no harm.
LAST = (("alarm", 2.0),)
Tick = Callable[[str, int, int, float], object]


@dataclass(frozen=True)
class Corpus:
    """All that can be learnt from: examples, and pairs of answers of which one is worse."""

    pool: Sequence[Example]
    pairs: Sequence[Contrast]


@dataclass(frozen=True)
class Stages:
    """How a network comes about, and the folder of its unfinished work.

    `base` is the folder or hub name of a BERT checkpoint with a `tokenizer.json`; `layers`
    are those of the students in turn, of which the last is the outcome; every stage passes
    `passes` times over the data.
    """

    base: str
    work: Path
    passes: float = 1.0
    layers: tuple[int, ...] = (6,)
    rate: float = 8e-5
    seed: int = 0
    device: str = "cpu"
    tick: Tick = lambda stage, step, steps, loss: None

    @property
    def members(self) -> tuple[Recipe, Recipe]:
        """Two that differ, since their mean is then better than either: one learns no contrast."""
        return self.recipe(0), replace(self.recipe(1), pairs=0.0)

    def student(self, number: int) -> Recipe:
        # The teacher has seen little chit-chat and few answers about pictures that alarm.
        times = (("diasafety_train", 0.8), ("msts_en_mm", 2.0), ("msts_en_text", 2.0))
        found = replace(self.recipe(2 + number), later=0.5, times=times)
        if number:
            found = replace(found, passes=found.passes * AGAIN**number, hard=HARD)
        return replace(found, times=(*times, *LAST), pairs=0.0) if number > 1 else found

    def recipe(self, number: int) -> Recipe:
        shape = Shape(window=176)
        seed = self.seed + number
        return Recipe(self.passes, rate=self.rate, seed=seed, device=self.device, shape=shape)


def gather(rows: Sequence[Row], seed: int = 0) -> Corpus:
    """The rows as examples, those that are made of them, and the pairs."""
    pool = examples(rows)
    if not any(e.answer is not None for e in pool):
        raise InputError("the data has no row with a response and response_harm: nothing to learn")
    pool += [found for row in rows if row.get("response") and (found := bare(row))]
    made = make(pool, Random(seed)) + alarms(pool, Random(seed))
    return Corpus(pool + made, contrasts(rows))


def train_network(corpus: Corpus, stages: Stages, encode: Encode) -> Network:
    """Members, their average, and the students that it teaches; goes on where it stopped."""
    trained = []
    for i, recipe in enumerate(stages.members):
        torch.manual_seed(recipe.seed)
        course = Course(f"member {i + 1}", recipe, corpus, encode, stages)
        trained.append(course.train(load_network(stages.base)))
    teacher = soup(trained)
    student = deepcopy(teacher)
    for i, layers in enumerate(stages.layers):
        course = Course(f"student {i + 1}", stages.student(i), corpus, encode, stages)
        before = student
        student = course.train(keep_layers(deepcopy(before), layers), teacher)
        if i and depth(student) == depth(before):
            # By itself it forgets harm (Wortsman et al., arXiv 2109.01903).
            student = soup((before, student))
    return student


def depth(network: Network) -> int:
    return len(network.body.encoder.layer)


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
        run = Fitting(network, self.recipe, round(len(first) * self.recipe.passes), folder)
        run.teacher = None if teacher is None else teacher.to(self.recipe.device)
        key = key_of(self.recipe, [batch.windows for batch in first])
        return fit(run, lambda turn: self.batches(turn)[: len(first)], key, self.tick)

    def batches(self, turn: int) -> list[Batch]:
        return plan(self.corpus.pool, self.corpus.pairs, self.encode, self.recipe, turn)

    def tick(self, step: int, steps: int, loss: float) -> None:
        self.stages.tick(self.name, step, steps, loss)


def train_encoder(data: Sequence[Path], dev: Path, out: Path, stages: Stages) -> dict[str, Any]:
    """Train on `data`, calibrate and measure on `dev`, write the bundle; returns its `eval.json`.

    Rows are those of `mmguard train linear`; besides, `harmful` and `safe` answers to one
    `prompt`, or `meta.pref` and `meta.pair`. Raises `InputError` naming file and line of a
    bad row.
    """
    rows = [row for path in data for row in load_rows(path)]
    halves = split(load_rows(dev))
    tokenizer, words = read_tokenizer(stages.base)
    parts = Parts(tokenizer, HEADS)
    model = export(train_network(gather(rows), stages, parts.encode))
    heads = fit_heads([row for row in rows if row.get("source") not in LEFT_OUT], stages.seed)
    parts = replace(parts, wording=Wording(heads, 0.0))
    detector = calibrate(model, parts, out.name, halves)
    prove(detector, CANARY)
    result = judge(detector, halves)
    result["data"] = {path.name: digest(path.read_bytes()) for path in (*data, dev)}
    files = {"model.onnx": model, "tokenizer.json": words, FILE: pack(heads)}
    card = describe(out.name, facts(detector, stages, rows), result, read_notes(out))
    write(out, manifest(detector, files), files, card, result)
    return result


def facts(detector: EncoderDetector, stages: Stages, rows: Sequence[Row]) -> dict[str, Any]:
    """What the card says of the bundle besides its figures."""
    parts = detector.parts
    return {
        "layers": stages.layers[-1],
        "window": parts.shape.window,
        "share": parts.wording.share if parts.wording else 0.0,
        "base": Path(stages.base).name,
        "sources": tally(rows),
    }


def read_notes(out: Path) -> str:
    """What was written by hand for the card."""
    path = out / "NOTES.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_tokenizer(base: str) -> tuple[Any, bytes]:
    """The base's tokenizer without cutting or padding, and itself as bytes."""
    from tokenizers import Tokenizer
    from transformers.utils.hub import cached_file

    path = cached_file(base, "tokenizer.json")
    if path is None:
        raise InputError(f"base {base!r} has no tokenizer.json: give a checkpoint that has one")
    found = Tokenizer.from_file(path)
    found.no_truncation()
    found.no_padding()
    return found, found.to_str().encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
