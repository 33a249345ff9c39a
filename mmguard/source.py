"""Where in which YAML file a value stands, so that an error can point at it.

Knows YAML and `extends`; knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmguard.errors import PolicyError

Where = Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a chain of `extends`, with its text parsed twice: values and places."""

    path: Path
    values: dict[str, Any]
    tree: yaml.Node | None

    def line(self, where: Where) -> int:
        """The line (from 1) of the deepest part of `where` that this file holds; 0 for none."""
        node, line = self.tree, 0
        for key in where:
            node = child(node, key)
            if node is None:
                break
            line = node.start_mark.line + 1
        return line

    def depth(self, where: Where) -> int:
        """How many parts of `where` this file holds."""
        node = self.tree
        for depth, key in enumerate(where):
            node = child(node, key)
            if node is None:
                return depth
        return len(where)


def child(node: yaml.Node | None, key: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if name.value == str(key)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        found: yaml.Node = node.value[key]
        return found
    return None


class Unique(yaml.SafeLoader):
    """A loader that refuses a field written twice: YAML itself would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if name.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"field {name.value!r} is written twice; keep one of them",
                    problem_mark=name.start_mark,
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def read_layer(path: Path) -> Layer:
    """The file as a layer; raises `PolicyError` with file and line if it is not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        values, tree = yaml.load(text, Unique), yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise PolicyError(f"{path}:{line}: not valid YAML: {exc.problem}") from exc
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise PolicyError(f"{path}: cannot be read: {exc}") from exc
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise PolicyError(f"{path}:1: a policy is a mapping of fields, not {type(values).__name__}")
    return Layer(path, values, tree)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge field by field, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]  # narrowed by both
    return merged
