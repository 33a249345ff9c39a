"""What is checked, at what strength, and what is done about it: one frozen value.

A policy names detectors, models and steps; it knows no URL, key or device. Whatever it
contradicts itself in is refused here, at load, with file, line, field, value and fix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mmguard import prompts, registry
from mmguard.bundles import data_folder, is_path
from mmguard.errors import PolicyError, UnknownName
from mmguard.fields import (
    Caption,
    Detoxify,
    Excise,
    Judge,
    Prompts,
    Resample,
    Rewrite,
    Stream,
    Strict,
    Strictness,
    contradict,
)
from mmguard.source import Layer, Where, merge, read_layer
from mmguard.types import JUDGE, SELF, Action

Thresholds = Mapping[str, Mapping[str, float]]

JUDGE_WORDS = {"low": 0.7, "medium": 0.5, "high": 0.3}


class Rule(Strict):
    """From which score on something is done, and what."""

    strictness: Strictness = "medium"
    action: Action = "repair"

    @property
    def threshold(self) -> float:
        """The number that `strictness` stands for; a word must be bound to a detector first."""
        if isinstance(self.strictness, str):
            raise PolicyError(f"strictness {self.strictness!r} is not bound: call Policy.bind")
        return self.strictness


class Check(Rule):
    """One detector, its rule, and rules of their own for some of its categories.

    `alone` shows the detector the answer without the request.
    """

    detector: str
    alone: bool = False
    grey: Strictness | None = None
    categories: dict[str, Rule] = Field(default_factory=dict)
    on_error: Action | None = None

    def bind(self, words: Mapping[str, float]) -> Check:
        rules = {
            name: rule.model_copy(update=self.number(rule, words))
            for name, rule in self.categories.items()
        }
        grey = None if self.grey is None else self.measure(self.grey, words)
        bound = self.model_copy(
            update={**self.number(self, words), "categories": rules, "grey": grey}
        )
        if grey is not None and grey >= bound.threshold:
            raise PolicyError(
                f"check {self.detector!r}: grey {self.grey!r} starts at {grey}, not below its"
                f" threshold {bound.threshold}: choose a stricter word or a lower number for grey"
            )
        return bound

    def number(self, rule: Rule, words: Mapping[str, float]) -> dict[str, float]:
        return {"strictness": self.measure(rule.strictness, words)}

    def measure(self, strictness: Strictness, words: Mapping[str, float]) -> float:
        if not isinstance(strictness, str):
            return strictness
        if strictness not in words:
            raise PolicyError(
                f"check {self.detector!r}: its detector has no threshold for {strictness!r}:"
                f" give a number from 0 to 1 or one of {sorted(words)}"
            )
        return words[strictness]


class Policy(Strict):
    """Everything that decides about an answer. See `policies/balanced.yaml` for each field."""

    version: Literal[1] = 1
    name: str = "unnamed"
    description: str = ""
    mode: Literal["enforce", "audit", "off"] = "enforce"
    input: tuple[Check, ...] = ()
    output: tuple[Check, ...] = ()
    judge: Judge | None = None
    repair: tuple[str, ...] = ("caption", "rewrite")
    deadline: Annotated[float, Field(gt=0)] | None = None
    caption: Caption = Caption()
    excise: Excise = Excise()
    rewrite: Rewrite = Rewrite()
    detoxify: Detoxify = Detoxify()
    resample: Resample = Resample()
    principles: tuple[str, ...] = prompts.PRINCIPLES
    on_error: Action = "block"
    unreadable: Literal["block", "pass"] = "block"
    stream: Stream = Stream()
    refusals: dict[str, str] = Field(default_factory=dict)
    prompts: Prompts = Prompts()

    @field_validator("mode", mode="before")
    @classmethod
    def unswitch(cls, mode: Any) -> Any:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if mode is False else mode

    @field_validator("repair")
    @classmethod
    def know_steps(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        for name in steps:
            if name not in registry.BUILTIN["steps"] and name not in registry.names("steps"):
                raise ValueError(str(UnknownName("step", name, registry.names("steps"))))
        return steps

    @model_validator(mode="after")
    def agree(self) -> Policy:
        if self.mode == "off" and (self.input or self.output):
            raise contradict("mode", value="off", fix="checks nothing: remove input and output")
        if self.mode != "off" and not self.output:
            fix = "nothing is checked before it leaves; add a check, or say mode: off"
            raise contradict("output", value=[], fix=fix)
        for side in ("input", "output"):
            for i, check in enumerate(getattr(self, side)):
                self.agree_check(check, side, i)
        if self.on_error == "repair" and not self.repair:
            raise contradict(
                "on_error", value="repair", fix="repair is empty; name a step, or block"
            )
        return self

    def agree_check(self, check: Check, *where: str | int) -> None:
        asks = check.detector == JUDGE or check.grey is not None
        if asks and self.judge is None:
            fix = "asks a judge that names no model; add judge: {model: target}"
            raise contradict(*where, "detector", value=check.detector, fix=fix)
        if where[0] == "input" and (asks or check.detector == SELF):
            fix = "a judge reads answers, not requests; move this check to output"
            raise contradict(*where, "detector", value=check.detector, fix=fix)
        if check.alone and (where[0] == "input" or self.opinion(check)):
            fix = "is for detectors of answers; move this check to output, or remove alone"
            raise contradict(*where, "alone", value=True, fix=fix)
        if not self.repair and "repair" in actions(check):
            fix = "repair is empty; name a step under repair, or block"
            raise contradict(*where, "action", value="repair", fix=fix)

    @cached_property
    def models(self) -> frozenset[str]:
        """Names of the models that a flow under this policy may ask."""
        steps = (self.caption, self.rewrite, self.detoxify)
        named = {*(step.model for step in steps), self.resample.helper}
        judge = {self.judge.model} if self.judge else set()
        return frozenset({"target", *judge, *(name for name in named if name)})

    @cached_property
    def detectors(self) -> frozenset[str]:
        """Names of the detectors that a flow under this policy may ask."""
        return frozenset(c.detector for c in (*self.input, *self.output)) - {JUDGE, SELF}

    @cached_property
    def running(self) -> tuple[Check, ...]:
        """The checks of an answer that is still being made: all that must pass before text leaves.

        Where none leaves, only those that cost no call of a model.
        """
        if self.stream.window is None or self.stream.mode == "window":
            return self.output if self.stream.window else ()
        cheap = (check for check in self.output if self.opinion(check) is None)
        return tuple(check.model_copy(update={"grey": None}) for check in cheap)

    @cached_property
    def tag(self) -> str:
        """Name and a hash of the content: equal tags decide alike."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.name}@{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def refusal(self, category: str) -> str:
        """What a refused caller reads."""
        default = self.refusals.get("default", prompts.REFUSAL)
        return self.refusals.get(category, default)

    def opinion(self, check: Check) -> Judge | None:
        """The model whose word a check takes; `None` where a detector scores."""
        if check.detector == SELF:
            return Judge(model="target")
        return self.judge if check.detector == JUDGE else None

    def second(self, action: Action) -> Check:
        """The judge's opinion as a check that leads to this action."""
        strictness = self.judge.strictness if self.judge else 0.0
        return Check(detector=JUDGE, strictness=strictness, action=action)

    def bind(self, thresholds: Thresholds) -> Policy:
        """This policy with every strictness a number, from each detector's own thresholds."""
        words = {JUDGE: JUDGE_WORDS, SELF: JUDGE_WORDS, **thresholds}
        judge = self.judge and self.judge.model_copy(
            update={
                "strictness": JUDGE_WORDS.get(str(self.judge.strictness), self.judge.strictness)
            }
        )
        sides = {
            side: tuple(c.bind(words[c.detector]) for c in getattr(self, side))
            for side in ("input", "output")
        }
        bound = self.model_copy(update={**sides, "judge": judge})
        # The tag names the file's content, not the numbers of one set of detectors.
        bound.__dict__["tag"] = self.tag
        return bound


def actions(check: Check) -> set[Action | None]:
    return {check.action, check.on_error, *(rule.action for rule in check.categories.values())}


def presets() -> list[str]:
    """Names of the policies that came with mmguard."""
    return sorted(path.stem for path in data_folder("policies").glob("*.yaml"))


def load_policy(source: str | Path | Mapping[str, Any] | Policy) -> Policy:
    """A policy from a preset's name, a file's path, a mapping, or as it is.

    Raises `PolicyError` for a bad one and `UnknownName` for no such preset.
    """
    if isinstance(source, Policy):
        return source
    if isinstance(source, Mapping):
        layers = [Layer(Path("policy"), dict(source), None)]
    else:
        layers = [read_layer(find_policy(source))]
    while parent := layers[-1].values.get("extends"):
        layers.append(read_layer(follow(parent, layers)))
    return build(layers)


def find_policy(source: str | Path) -> Path:
    if is_path(source) or str(source).endswith((".yaml", ".yml")):
        return Path(source)
    path = data_folder("policies") / f"{source}.yaml"
    if not path.is_file():
        raise UnknownName("policy", str(source), presets())
    return path


def follow(parent: Any, layers: list[Layer]) -> Path:
    """The file that the last layer extends: a preset, or a path relative to that layer."""
    child = layers[-1]
    place = f"{child.path}:{child.line(['extends'])}: extends {parent!r}"
    if not isinstance(parent, str):
        raise PolicyError(f"{place}: name one preset or file")
    try:
        path = find_policy(parent)
    except UnknownName as exc:
        raise PolicyError(f"{place}: {exc}") from exc
    if is_path(parent) or parent.endswith((".yaml", ".yml")):
        path = child.path.parent / parent
    if path.resolve() in [layer.path.resolve() for layer in layers]:
        raise PolicyError(f"{place}: a circle; let one of the files extend nothing")
    return path


def build(layers: list[Layer]) -> Policy:
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        own = {key: value for key, value in layer.values.items() if key != "extends"}
        values = merge(values, own)
    values = {"name": layers[0].path.stem, **values}
    if "name" not in layers[0].values:
        values["name"] = layers[0].path.stem
    try:
        return Policy.model_validate(values)
    except ValidationError as exc:
        lines = [explain(error, layers) for error in exc.errors()]
        raise PolicyError("\n".join(dict.fromkeys(lines))) from exc


FIXES = {
    "extra_forbidden": "no such field; remove it or fix its spelling",
    "missing": "this field is missing; add it",
}


def explain(error: Mapping[str, Any], layers: list[Layer]) -> str:
    """One line for one error: file, line, field, value, what is wrong and how to mend it."""
    about = error.get("ctx", {})
    where: Where = (*error["loc"], *about.get("where", ()))
    layer = max(layers, key=lambda candidate: candidate.depth(where))
    value = about.get("value", error["input"])
    shown = "" if error["type"] == "missing" else f" {value!r}:"
    message = FIXES.get(error["type"], error["msg"].removeprefix("Value error, "))
    return f"{layer.path}:{layer.line(where) or 1}: {spell(where)}{shown} {message}"


def spell(where: Where) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return f"{text.removeprefix('.')}:"


def schema() -> dict[str, Any]:
    """The JSON schema of a policy file."""
    made = Policy.model_json_schema()
    made["properties"]["extends"] = {
        "type": "string",
        "description": "a preset or a file below this one",
    }
    return made
