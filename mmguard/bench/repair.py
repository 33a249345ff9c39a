"""What repairs cost: tokens, calls and seconds an answer, as ratios to no guard, in one run.

A stand-in says nothing that could be judged, so verdicts are scripted; `tell_script` says
what is, and what is not.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mmguard.bench.llava import USUAL, Size, make_llava
from mmguard.bench.script import Cost, Lengths, Metered, Overruled, Script, Target, count
from mmguard.bundles import load_detector
from mmguard.machine import tell_machine
from mmguard.media import load_image
from mmguard.models.embedded import EmbeddedModel
from mmguard.models.hf import HFModel
from mmguard.pictures import cases
from mmguard.policy import load_policy
from mmguard.types import Guarded, Message, Model, Request, Text
from mmguard.wrap import Wrapped

KINDS = ("harmless", "harmful")
TRAFFIC = ("harmless", "mixed", "harmful")
# Without a guard, what all others are compared with.
OFF = "off"
POLICIES = ("ecso", "protector", "balanced")
REUSE = 4
# The stages whose prompts begin as the draft's does.
SHORT = ("judge", "caption")

Opened = tuple[Model, Metered, Callable[[], object]]
# A model that can be opened again with another memory: the model, its counted half, and
# what forgets all that it saw.
Subject = Callable[[int], Opened]
Round = Mapping[str, Mapping[str, Cost]]


@dataclass(frozen=True, slots=True)
class Plans:
    """What is measured. `share` of a draft is enough to flag it; `mixed` traffic has this share
    of harmful requests; `stream` asks for answers as streams."""

    policies: tuple[str, ...] = POLICIES
    rounds: int = 5
    lengths: Lengths = field(default_factory=Lengths)
    share: float = 0.42
    mixed: float = 0.1
    stream: bool = False


# -- models ---------------------------------------------------------------------


def open_subject(name: str, size: Size = USUAL) -> Subject:
    """`random`, `embedded`, or a HuggingFace folder or name; on a CPU, one thread."""
    if name == "embedded":
        return open_embedded()
    found = HFModel(*make_llava(size)) if name == "random" else HFModel.load(name)
    limit_threads(found)

    def open_again(reuse: int) -> Opened:
        made = meter(found, reuse)
        return made, made, made.forget

    return open_again


def open_embedded() -> Subject:
    loaded = EmbeddedModel().words()

    def open_again(reuse: int) -> Opened:
        model = EmbeddedModel()
        counted = model.loaded = meter(loaded, reuse)
        return model, counted, model.eyes.sights.clear

    return open_again


def meter(model: HFModel, reuse: int) -> Metered:
    """The same model, counted, with a memory of its own."""
    return Metered(model.model, model.processor, name=model.name, reuse=reuse)


def limit_threads(model: HFModel) -> None:
    import torch

    if model.model.device.type == "cpu":
        torch.set_num_threads(1)


# -- arms -----------------------------------------------------------------------


@dataclass
class Arm:
    """One policy over one model, and what each stage of its answers took."""

    policy: str
    reuse: int
    wrapped: Wrapped
    target: Target
    forget: Callable[[], object]
    detectors: Sequence[Overruled] = ()
    stages: dict[str, Cost] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.policy if self.reuse else f"{self.policy}, no reuse"

    def ask(self, request: Request, stream: bool) -> tuple[Guarded, Cost]:
        """One answer from nothing remembered, and what it took."""
        self.fresh(request)
        start, busy = time.perf_counter(), time.process_time()
        guarded = drain(self.wrapped, request) if stream else self.wrapped.chat(request)
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        costs = self.target.counted.costs
        for stage, cost in zip(self.target.stages, costs, strict=True):
            self.stages[stage] = self.stages.get(stage, Cost()) + cost
        others = [count(c.reply.usage) for c in guarded.calls if c.model != "target"]
        spent = sum(detector.seconds for detector in self.detectors)
        return guarded, replace(
            sum([*costs, *others], Cost()), seconds=seconds, cpu_s=cpu, detector_s=spent
        )

    def fresh(self, request: Request) -> None:
        self.forget()
        self.target.asked = request
        self.target.stages.clear()
        self.target.counted.costs.clear()
        for detector in self.detectors:
            detector.fresh()


def drain(wrapped: Wrapped, request: Request) -> Guarded:
    """A stream's `Guarded`, its pieces thrown away."""
    with closing(wrapped.stream(request)) as pieces:
        while True:
            try:
                next(pieces)
            except StopIteration as stop:
                guarded: Guarded = stop.value
                return guarded


def make_arms(subject: Subject, plans: Plans, script: Script) -> list[Arm]:
    """No guard, every policy, and those that read a picture twice once more without memory."""
    arms = [make_arm(subject, OFF, REUSE, script, plans.lengths)]
    for name in plans.policies:
        arms.append(make_arm(subject, name, REUSE, script, plans.lengths))
        policy = load_policy(name)
        if (policy.judge or "caption" in policy.repair) and not arms[0].target.counted.unshared:
            arms.append(make_arm(subject, name, 0, script, plans.lengths))
    return arms


def make_arm(subject: Subject, name: str, reuse: int, script: Script, lengths: Lengths) -> Arm:
    inner, counted, forget = subject(reuse)
    target, policy = Target(inner, counted, script, lengths), load_policy(name)
    detectors = {each: Overruled(load_detector(each), script) for each in policy.detectors}
    wrapped = Wrapped(target, policy, detectors=detectors)
    return Arm(policy.name, reuse, wrapped, target, forget, tuple(detectors.values()))


def make_requests(lengths: Lengths) -> dict[str, list[Request]]:
    """The demo's pictures and questions, by kind."""
    # The seed draws nothing; it tells the caller's options from those of a plan.
    options = {"max_tokens": lengths.draft, "temperature": 0, "seed": 0}
    return {
        kind: [
            Request((Message("user", (load_image(case.draw()), Text(case.question))),), options)
            for case in cases()
            if case.kind == kind
        ]
        for kind in KINDS
    }


# -- one run --------------------------------------------------------------------


class Run:
    """All arms over the same requests, round by round, each request in another order of arms."""

    def __init__(self, subject: Subject, plans: Plans) -> None:
        self.plans, self.script = plans, Script(plans.share)
        self.arms = make_arms(subject, plans, self.script)
        self.requests = make_requests(plans.lengths)
        self.drafts: list[str] = []
        names = [arm.name for arm in self.arms]
        self.actions: dict[str, dict[str, dict[str, int]]] = {
            kind: {name: {} for name in names} for kind in KINDS
        }

    def warm(self) -> None:
        """Learn the drafts that will be flagged, and let every arm do its work once."""
        self.drafts = [self.ask(self.arms[0], request)[0].text for request in self.harmful]
        self.script.marked = self.drafts[:1]
        for arm in self.arms:
            self.ask(arm, self.harmful[0])
            arm.stages.clear()

    @property
    def harmful(self) -> list[Request]:
        return self.requests["harmful"]

    def ask(self, arm: Arm, request: Request) -> tuple[Guarded, Cost]:
        return arm.ask(request, self.plans.stream)

    def rounds(self) -> Iterator[Round]:
        """The cost of an answer by kind and arm, the mean over the kind's requests."""
        self.warm()
        for number in range(self.plans.rounds):
            yield self.play(random.Random(number))

    def play(self, order: random.Random) -> Round:
        sums: dict[str, dict[str, Cost]] = {kind: {} for kind in KINDS}
        for kind, asked in self.requests.items():
            for place, request in enumerate(asked):
                self.script.marked = self.drafts[place : place + 1] if kind == "harmful" else []
                for arm in order.sample(self.arms, len(self.arms)):
                    guarded, cost = self.ask(arm, request)
                    self.count(kind, arm.name, guarded)
                    old = sums[kind].get(arm.name, Cost())
                    sums[kind][arm.name] = old + cost * (1 / len(asked))
        own = {kind: {arm.name: sums[kind][arm.name] for arm in self.arms} for kind in KINDS}
        return {**own, "mixed": self.mix(own)}

    def mix(self, sums: Round) -> dict[str, Cost]:
        share = self.plans.mixed
        harmless, harmful = (sums[kind] for kind in KINDS)
        return {name: harmless[name] * (1 - share) + harmful[name] * share for name in harmless}

    def count(self, kind: str, arm: str, guarded: Guarded) -> None:
        how = guarded.step if guarded.action == "repair" else guarded.action
        found = self.actions[kind][arm]
        found[how] = found.get(how, 0) + 1


def bench_repair(run: Run, model: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """The report, ready for JSON: costs an answer, ratios to no guard, tokens saved."""
    counted = run.arms[0].target.counted
    return {
        "model": model,
        "plans": asdict(run.plans),
        "requests": {kind: len(asked) for kind, asked in run.requests.items()},
        "scripted": tell_script(run.plans, model),
        "unshared": counted.unshared,
        "per_answer": {kind: costs(rounds, kind) for kind in TRAFFIC},
        "ratios": {kind: ratios(rounds, kind) for kind in TRAFFIC},
        "reuse": savings(run.arms),
        "outcomes": run.actions,
        "machine": tell_machine(counted.model),
    }


def costs(rounds: Sequence[Round], kind: str) -> dict[str, dict[str, float]]:
    """The median over rounds of what an answer took, by arm."""
    return {
        arm: {
            each.name: round(
                statistics.median(getattr(one[kind][arm], each.name) for one in rounds), 4
            )
            for each in fields(Cost)
        }
        for arm in rounds[0][kind]
    }


def ratios(rounds: Sequence[Round], kind: str) -> dict[str, dict[str, dict[str, float]]]:
    """Each round's cost by that round's cost without a guard: median, lowest and highest."""
    names = [each.name for each in fields(Cost) if each.name != "detector_s"]
    return {
        arm: {name: spread([against(one[kind], arm, name) for one in rounds]) for name in names}
        for arm in rounds[0][kind]
        if arm != OFF
    }


def against(found: Mapping[str, Cost], arm: str, name: str) -> float:
    ours, base = getattr(found[arm], name), getattr(found[OFF], name)
    return float(ours / base)


def spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def savings(arms: Sequence[Arm]) -> dict[str, dict[str, dict[str, float]]]:
    """By policy and stage: prompt tokens read with and without memory, and the share saved."""
    found = {}
    for arm in arms:
        twin = next((a for a in arms if a.policy == arm.policy and not a.reuse), None)
        if arm.reuse and twin:
            found[arm.policy] = {
                stage: cut(arm.stages[stage].read, twin.stages[stage].read)
                for stage in SHORT
                if stage in arm.stages
            }
    return found


def cut(read: float, whole: float) -> dict[str, float]:
    return {"read": read, "read_whole": whole, "cut": round(1 - read / whole, 4)}


def tell_script(plans: Plans, model: str) -> list[str]:
    """What of the run is scripted, in words."""
    kind = "forced: a random model never ends an answer by itself"
    if model != "random":
        kind = "limits: the model ends its answers by itself"
    lengths = plans.lengths
    return [
        "Verdicts are scripted: a draft on harmful traffic is flagged as soon as "
        f"{plans.share:.0%} of its characters are there, and every other text passes, so the first"
        " repair step's answer leaves. Detectors score the real text first; only their score is"
        " replaced.",
        "The judge reads its prompt and generates two tokens, or one where its chances are asked"
        " for; only its word is replaced.",
        f"Lengths in tokens are {kind}: draft {lengths.draft}, description {lengths.caption},"
        f" mended answer {lengths.repair}.",
        "Every answer starts with nothing remembered: no prompt, no score, no sight of a picture.",
        f"Mixed traffic is the same answers weighted, {plans.mixed:.0%} of them harmful.",
    ]
