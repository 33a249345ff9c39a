"""Which policy a request is under: by its key, or else by rules in order, or else the default.

A key's own policy comes first: whoever bears it cannot choose a model or a route to get
another. Then the first rule that fits decides, and where none does, `policy`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from mmguard.errors import InputError
from mmguard.fields import Strict, contradict

if TYPE_CHECKING:
    from mmguard.server.settings import Settings

SELECTORS = ("keys", "models", "routes")


def listed(value: Any) -> Any:
    """One name alone will do."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]


class Rule(Strict):
    """A policy, and whose requests it is for: all that is named must fit.

    `keys` are names of keys; `models`, what requests ask for, and `routes` may have wildcards
    (`gpt-4*`). Names of models are compared without regard to case.
    """

    policy: str
    keys: Names = ()
    models: Names = ()
    routes: Names = ()

    def misses(self, key: str, model: str, route: str) -> list[str]:
        """What of it does not fit."""
        lowered = [pattern.lower() for pattern in self.models]
        found = {
            f"key {key!r} is not {' or '.join(self.keys)}": self.keys and key not in self.keys,
            f"model {model!r} is not {' or '.join(self.models)}": not fits(lowered, model.lower()),
            f"route {route} is not {' or '.join(self.routes)}": not fits(self.routes, route),
        }
        return [why for why, misses in found.items() if misses]

    @property
    def told(self) -> str:
        """What it asks for, in words."""
        named = {name: getattr(self, name) for name in SELECTORS}
        return "; ".join(f"{name}: {', '.join(value)}" for name, value in named.items() if value)


def fits(patterns: Sequence[str], name: str) -> bool:
    """Whether a name is among the patterns, or there are none."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy by its name or path, why it is this one, and why nothing before it was."""

    policy: str
    why: str
    missed: tuple[str, ...] = ()


def choose(settings: Settings, key: str, model: str, route: str) -> Choice:
    """The policy of a request. What `mmguard policies explain` tells is this very choice."""
    own, missed = settings.keys.get(key), list[str]()
    if own and own.policy:
        return Choice(own.policy, f"keys.{key} has it as its own policy")
    if own:
        missed.append(f"keys.{key}: no policy of its own")
    for i, rule in enumerate(settings.attach):
        misses = rule.misses(key, model, route)
        if not misses:
            return Choice(rule.policy, f"attach[{i}] fits ({rule.told})", tuple(missed))
        missed.append(f"attach[{i}] ({rule.policy}): {', and '.join(misses)}")
    return Choice(settings.policy, "it is the default, policy", tuple(missed))


def agree(rules: Sequence[Rule], keys: Mapping[str, Any]) -> None:
    """Raises pydantic's error for a rule that could never apply, or that leaves none after it."""
    for i, rule in enumerate(rules):
        if not any(getattr(rule, name) for name in SELECTORS):
            fix = "fits every request; give it keys, models or routes, or set policy instead"
            raise contradict("attach", i, value=rule.policy, fix=fix)
        for name in rule.keys:
            if name not in keys:
                fix = f"{name!r} is the name of no key; known: {', '.join(keys) or 'none'}"
                raise contradict("attach", i, "keys", value=name, fix=fix)
            if keys[name].policy:
                fix = f"{name!r} has a policy of its own, which comes first; remove one of the two"
                raise contradict("attach", i, "keys", value=name, fix=fix)


def check_routes(rules: Sequence[Rule], paths: Collection[str]) -> None:
    """Raises `InputError` for a route that nothing is served at."""
    for i, rule in enumerate(rules):
        for route in rule.routes:
            if not any(fits([route], path) for path in paths):
                known = ", ".join(sorted(paths))
                raise InputError(f"attach.{i}.routes: nothing is served at {route!r}: use {known}")
