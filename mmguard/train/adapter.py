"""The recipes of the adapters of `embedded`: from rows of data to a bundle; resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from mmguard.bundles import Bundle, Manifest, load_detector
from mmguard.errors import InputError
from mmguard.models.adapter import WEIGHTS, adapt
from mmguard.models.embedded import SHA256, EmbeddedModel, Words, load_base
from mmguard.models.hf import HFModel
from mmguard.train.adapter_card import describe
from mmguard.train.conscience import conscience, second
from mmguard.train.detoxifier import detoxifier
from mmguard.train.lessons import Lesson, Limits
from mmguard.train.measure import Row, load_rows
from mmguard.train.mix import LEFT_OUT
from mmguard.train.proof import Bench, plain, prove_conscience, prove_detoxifier, wish_of
from mmguard.train.tune import Plan, Pupil, Tick, tune
from mmguard.types import Detector

Kind = Literal["conscience", "detoxifier"]
ABOUT = {
    "conscience": "Declines harmful words, and too many harmless ones: see its card.",
    "detoxifier": "Writes a harmful answer anew, for a policy's `detoxify: {model: detoxifier}`.",
}
BEGUN = {"max_tokens": 24, "temperature": 0}
PLANS = {
    "conscience": Plan(),
    "detoxifier": Plan(rank=16, limits=Limits(prompt=440, answer=100)),
}


@dataclass(frozen=True)
class Job:
    """One adapter: its data, where it is made and how it is measured.

    `base` is the folder of a chat model with its tokenizer, by default that of `embedded`;
    `encoder` a BERT folder that measures meaning; `size` scales the lessons, `limit` bounds
    the dev rows of a group.
    """

    kind: Kind
    data: Sequence[Path]
    dev: Sequence[Path]
    out: Path
    work: Path
    seed: int = 0
    base: Path | None = None
    encoder: Path | None = None
    detector: str = "response-harm"
    size: float = 1.0
    limit: int = 40
    tick: Tick = field(default=lambda step, steps, loss: None)


@dataclass(frozen=True)
class Ground:
    """The base: a new copy of the model each time, its tokenizer, and its weights' sha256."""

    fresh: Callable[[], Any]
    words: Words
    sha256: str


def open_ground(folder: Path | None) -> Ground:
    import copy

    if folder is None:
        shared, words = load_base(EmbeddedModel().cache, 1)
        return Ground(lambda: copy.deepcopy(shared), words, SHA256)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = Words(AutoTokenizer.from_pretrained(folder, padding_side="left"))
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return Ground(lambda: copy.deepcopy(model), words, found)


def train_adapter(job: Job) -> dict[str, Any]:
    """Train on `data`, measure on `dev`, write the bundle; returns its `eval.json`.

    Data as for `mmguard train encoder`. Dev rows are the same for a conscience, and for a
    detoxifier have `prompt`, `harmful` and `safe`; its wishes are kept out of training.
    Raises `InputError` naming file and line of a bad row, or if there is nothing to learn.
    """
    rows = [row for path in job.data for row in load_rows(path)]
    tried = [(row, path.parent) for path in job.dev for row in load_rows(path)]
    ground, detector = open_ground(job.base), load_detector(job.detector)
    plan, weights, told = plan_of(job, ground), dict[str, torch.Tensor](), list[Lesson]()
    for number, stage in enumerate(STAGES[job.kind]):
        lessons = stage(job, rows, [row for row, _ in tried], Teacher(ground, detector))
        pupil = Pupil(ground.fresh(), ground.words.tokenizer, weights)
        weights = tune(pupil, lessons, plan, job.work / str(number + 1), job.tick)
        told += lessons
    bundle = write(job, plan, ground, weights)
    bench = Bench(detector, job.limit, job.seed, job.encoder)
    result = prove(job, bundle, ground, tried, {wish_of(row) for row in rows}, bench)
    result["data"] = {path.name: digest(path) for path in (*job.data, *job.dev)}
    result["lessons"] = tally(lesson.source for lesson in told)
    finish(job, rows, result)
    return result


@dataclass(frozen=True)
class Teacher:
    """What lessons are checked with, and who answers where the base shall stay what it was."""

    ground: Ground
    detector: Detector

    def speak(self, asked: Sequence[str]) -> list[str]:
        """The first words of the bare base's answers."""
        bare = HFModel(self.ground.fresh(), self.ground.words, name="bare")
        return [reply.text for reply in bare.generate([plain(text, BEGUN) for text in asked])]


def first_conscience(
    job: Job, rows: Sequence[Row], tried: Sequence[Row], teacher: Teacher
) -> list[Lesson]:
    return some(conscience(usable(rows), job.seed, job.size), job)


def second_conscience(
    job: Job, rows: Sequence[Row], tried: Sequence[Row], teacher: Teacher
) -> list[Lesson]:
    return second(usable(rows), teacher.speak, job.seed, job.size)


def only_detoxifier(
    job: Job, rows: Sequence[Row], tried: Sequence[Row], teacher: Teacher
) -> list[Lesson]:
    """Dev has few wishes, so they are kept out; a toxic sentence has none."""
    held = {wish_of(row) for row in tried}
    kept = [row for row in usable(rows) if row.get("toxic") or wish_of(row) not in held]
    return some(detoxifier(kept, job.seed, teacher.detector, job.size), job)


def usable(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("source") not in LEFT_OUT]


def some(lessons: list[Lesson], job: Job) -> list[Lesson]:
    if all(lesson.source == "border" for lesson in lessons):
        raise InputError(f"the data has no rows that teach a {job.kind}: see its recipe")
    return lessons


STAGES = {
    "conscience": (first_conscience, second_conscience),
    "detoxifier": (only_detoxifier,),
}


def plan_of(job: Job, ground: Ground) -> Plan:
    """The kind's own numbers; at most the upper half of the layers learns."""
    plan, layers = PLANS[job.kind], ground.fresh().config.num_hidden_layers
    return replace(plan, seed=job.seed, first=min(plan.first, layers // 2))


def write(job: Job, plan: Plan, ground: Ground, weights: Mapping[str, torch.Tensor]) -> Bundle:
    """The weights and their manifest."""
    from safetensors.torch import save

    data = save(dict(weights))
    settings = {"base": ground.sha256, "rank": plan.rank, "scale": plan.scale}
    manifest = Manifest(
        name=job.out.name,
        version="1",
        kind="adapter",
        description=ABOUT[job.kind],
        license="Apache-2.0",
        files={WEIGHTS: hashlib.sha256(data).hexdigest()},
        settings=settings,
    )
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / WEIGHTS).write_bytes(data)
    text = yaml.safe_dump(manifest.model_dump(exclude_defaults=True), sort_keys=False)
    (job.out / "adapter.yaml").write_text(text, encoding="utf-8")
    return Bundle(job.out, manifest, "adapter.yaml")


def prove(
    job: Job,
    bundle: Bundle,
    ground: Ground,
    tried: Sequence[tuple[Row, Path]],
    seen: set[str],
    bench: Bench,
) -> dict[str, Any]:
    """The figures of the bundle as it was written, beside those of the bare base."""
    bare = EmbeddedModel(name="bare")
    bare.loaded = HFModel(ground.fresh(), ground.words, name="bare")
    tuned = EmbeddedModel(name=job.kind)
    tuned.loaded = HFModel(adapt(bare.loaded.model, bundle), ground.words, name=job.kind)
    tuned.eyes = bare.eyes
    models = {"bare": bare, job.kind: tuned}
    if job.kind == "conscience":
        return {"groups": prove_conscience(models, tried, seen, bench)}
    return prove_detoxifier(models, [row for row, _ in tried], bench)


def finish(job: Job, rows: Sequence[Row], result: Mapping[str, Any]) -> None:
    notes = job.out / "NOTES.md"
    own = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    card = describe(job.out.name, job.kind, rows, result, own)
    (job.out / "CARD.md").write_text(card, encoding="utf-8")
    (job.out / "eval.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def tally(names: Any) -> dict[str, int]:
    from collections import Counter

    return dict(sorted(Counter(names).items()))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
