"""The recipes of the adapters of `embedded`: from rows of data to a bundle; resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from mmguard.train.conscience import again, conscience
from mmguard.train.detoxifier import detoxifier
from mmguard.train.lessons import Lesson, Limits
from mmguard.train.loop import Tick, key_of
from mmguard.train.measure import Row, load_rows
from mmguard.train.mix import LEFT_OUT
from mmguard.train.proof import Bench, plain, prove_conscience, prove_detoxifier, wish_of
from mmguard.train.scale import settle
from mmguard.train.tune import Plan, Pupil, tune
from mmguard.types import Detector

Kind = Literal["conscience", "detoxifier"]
ABOUT = {
    "conscience": "Declines what is plainly harmful in words, but not in pictures: see its card.",
    "detoxifier": "Writes a harmful answer anew, for a policy's `detoxify: {model: detoxifier}`.",
}
BEGUN = {"max_tokens": 10, "temperature": 0}
ROWS = 32
# One plan a stage. Whether to decline is decided in the first words, so a second one learns those.
PLANS = {
    "conscience": (
        Plan(tokens=1000, limits=Limits(answer=28)),
        Plan(tokens=1000, rate=3e-4, limits=Limits(answer=4)),
    ),
    "detoxifier": (Plan(rank=16, limits=Limits(prompt=440, answer=100)),),
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
    teacher = Teacher(ground, detector, job.work / "said.json")
    lessons = LESSONS[job.kind](job, rows, [row for row, _ in tried], teacher)
    taught = [lesson for lesson in lessons if not lesson.held]
    plan, weights = teach(job, ground, taught)
    bundle = write(job, plan, ground, weights)
    bench = Bench(detector, job.limit, job.seed, job.encoder)
    scales: dict[str, Any] = {}
    if held := [lesson for lesson in lessons if lesson.held]:
        scale, scales = settle(held, partial(merged, ground, bundle), bench)
        bundle = write(job, replace(plan, scale=scale), ground, weights)
    result = prove(job, bundle, ground, tried, {wish_of(row) for row in rows}, bench)
    result["data"] = {path.name: digest(path) for path in (*job.data, *job.dev)}
    result["lessons"] = tally(lesson.source for lesson in taught)
    result["scales"] = scales
    finish(job, rows, result)
    return result


@dataclass(frozen=True)
class Teacher:
    """What lessons are checked with, and who answers where the base shall stay what it was."""

    ground: Ground
    detector: Detector
    kept: Path

    def speak(self, asked: Sequence[str]) -> list[str]:
        """The first words of the bare base's answers; those to the same requests are `kept`."""
        key = key_of(self.ground.sha256, BEGUN, *asked)
        if self.kept.is_file():
            known = json.loads(self.kept.read_text(encoding="utf-8"))
            if known["key"] == key:
                return list(known["said"])
        bare = HFModel(self.ground.fresh(), self.ground.words, name="bare", batch_size=ROWS)
        order = sorted(range(len(asked)), key=lambda place: len(asked[place]))
        found = bare.generate([plain(asked[place], BEGUN) for place in order])
        said = {place: reply.text for place, reply in zip(order, found, strict=True)}
        told = [said[place] for place in range(len(asked))]
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self.kept.write_text(json.dumps({"key": key, "said": told}), encoding="utf-8")
        return told


def all_conscience(
    job: Job, rows: Sequence[Row], tried: Sequence[Row], teacher: Teacher
) -> list[Lesson]:
    """Dev's wishes that are taught too are left out when it is measured."""
    lessons = conscience(usable(rows), teacher.speak, job.seed, job.size)
    if not any(lesson.source == "harmful" for lesson in lessons):
        raise InputError("the data has no rows that teach a conscience: see its recipe")
    return lessons


def only_detoxifier(
    job: Job, rows: Sequence[Row], tried: Sequence[Row], teacher: Teacher
) -> list[Lesson]:
    """Dev has few wishes, so they are kept out; a toxic sentence has none."""
    held = {wish_of(row) for row in tried}
    kept = [row for row in usable(rows) if row.get("toxic") or wish_of(row) not in held]
    lessons = detoxifier(kept, job.seed, teacher.detector, job.size)
    if not lessons:
        raise InputError("the data has no rows that teach a detoxifier: see its recipe")
    return lessons


def usable(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("source") not in LEFT_OUT]


LESSONS = {"conscience": all_conscience, "detoxifier": only_detoxifier}


def teach(job: Job, ground: Ground, taught: list[Lesson]) -> tuple[Plan, dict[str, torch.Tensor]]:
    """All stages, each from where the one before ended; at most the upper half of layers learns."""
    layers, weights = ground.fresh().config.num_hidden_layers, dict[str, torch.Tensor]()
    for number, numbers in enumerate(PLANS[job.kind]):
        plan = replace(numbers, seed=job.seed, first=min(numbers.first, layers // 2))
        lessons = again(taught, job.seed) if number else taught
        pupil = Pupil(ground.fresh(), ground.words.tokenizer, weights)
        weights = tune(pupil, lessons, plan, job.work / str(number + 1), job.tick)
    return plan, weights


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
    bare.loaded = HFModel(ground.fresh(), ground.words, name="bare", batch_size=ROWS)
    tuned = EmbeddedModel(name=job.kind)
    tuned.loaded = merged(ground, bundle, float(bundle.settings["scale"]))
    tuned.eyes = bare.eyes
    models = {"bare": bare, job.kind: tuned}
    if job.kind == "conscience":
        return {"groups": prove_conscience(models, tried, seen, bench)}
    return prove_detoxifier(models, [row for row, _ in tried], bench)


def merged(ground: Ground, bundle: Bundle, scale: float) -> HFModel:
    """The base with so much of the adapter."""
    settings = {**bundle.settings, "scale": scale}
    manifest = bundle.manifest.model_copy(update={"settings": settings})
    model = adapt(ground.fresh(), Bundle(bundle.folder, manifest, bundle.listed))
    return HFModel(model, ground.words, name="merged", batch_size=ROWS)


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
