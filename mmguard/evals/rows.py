"""Labelled rows of any JSONL file: which fields hold what, and what their values mean.

What cannot be read as a label is an error with file, line, value and fix, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mmguard.errors import InputError
from mmguard.rows import Row, is_uri, number_rows, score_rows
from mmguard.types import Detector

Side = Literal["answer", "request"]
SIDES: tuple[Side, ...] = ("answer", "request")
# Names that public data sets use; of several in one file the first listed counts.
PROMPTS = ("prompt", "user_input", "instruction", "question", "query", "input")
RESPONSES = ("response", "answer", "completion", "model_output", "output", "generation")
LABELS: Mapping[Side, tuple[str, ...]] = {
    "answer": (
        "response_harm",
        "response_harm_label",
        "response_label",
        "is_response_safe",
        "is_safe",
        "is_harmful",
        "harmful",
        "unsafe",
        "safe",
        "label",
    ),
    "request": (
        "prompt_harm",
        "prompt_harm_label",
        "prompt_label",
        "is_prompt_safe",
        "is_harmful",
        "harmful",
        "unsafe",
        "toxicity",
        "label",
    ),
}
SWITCHES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
WORDS = {
    "harmful": True,
    "unsafe": True,
    "toxic": True,
    "harmless": False,
    "unharmful": False,
    "benign": False,
    "safe": False,
}
FIX = "use 0 or 1, true or false, safe or unsafe, harmful or harmless, or null"


@dataclass(frozen=True, slots=True)
class Example:
    """One row with a label: texts, the picture as path or URI, and where it belongs."""

    id: Any
    source: str
    categories: tuple[str, ...]
    prompt: str | None
    response: str | None
    image: str | None
    harmful: bool


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields hold label, prompt and response; `None` is found from the file."""

    label: str | None = None
    prompt: str | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, from 1."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(slots=True)
class Labelled:
    """The examples of some files, which fields were read, and how many rows were left out."""

    examples: list[Example] = field(default_factory=list)
    fields: dict[str, Fields] = field(default_factory=dict)
    unlabelled: int = 0
    textless: int = 0

    def add(self, row: Row, names: Fields, side: Side, place: Place) -> None:
        """The row as an example, or as one more that was left out."""
        harmful = read_label(row, names.label or "", place)
        if harmful is None:
            self.unlabelled += 1
            return
        example = make_example(row, names, harmful, place)
        if side == "request":
            example = replace(example, response=None)
        if example.prompt if side == "request" else example.response:
            self.examples.append(example)
        else:
            self.textless += 1


def load_examples(
    paths: Sequence[Path], side: Side = "answer", wanted: Fields = Fields()
) -> Labelled:
    """The labelled rows of JSONL files, gzipped or not.

    A row without a label, or without a text on this side, is left out and counted.
    Raises `InputError` with file and line for a row that is not one, or a label that is none.
    """
    found = Labelled()
    for path in paths:
        lines = list(read_lines(path))
        names = detect(path, [row for _, row in lines], side, wanted)
        found.fields[str(path)] = names
        for number, row in lines:
            found.add(row, names, side, Place(path, number))
    if not found.examples:
        raise InputError(f"{', '.join(map(str, paths))}: no row has both a label and a text")
    return found


def read_lines(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        for number, row in number_rows(path):
            if isinstance(row, InputError):
                raise row
            yield number, row
    except (UnicodeDecodeError, EOFError) as exc:
        raise InputError(f"{path}: not JSONL text in UTF-8: {exc}") from exc


def detect(path: Path, rows: Sequence[Row], side: Side, wanted: Fields) -> Fields:
    present = {name for row in rows for name, value in row.items() if value is not None}
    label = pick(wanted.label, LABELS[side], present, f"{path}: label")
    prompt = pick(wanted.prompt, PROMPTS, present, f"{path}: prompt")
    response = pick(wanted.response, RESPONSES, present, f"{path}: response")
    if label is None:
        known = ", ".join(LABELS[side])
        raise InputError(
            f"{path}: no field holds a label of the {side}: name one with --label, "
            f"or call it one of {known}"
        )
    if (response if side == "answer" else prompt) is None:
        option = "--response" if side == "answer" else "--prompt"
        raise InputError(f"{path}: no field holds the {side}'s text: name one with {option}")
    return Fields(label, prompt, response)


def pick(wanted: str | None, known: Iterable[str], present: set[str], what: str) -> str | None:
    if wanted is None:
        return next((name for name in known if name in present), None)
    if wanted not in present:
        raise InputError(f"{what}: no row has a field {wanted!r}; fields: {sorted(present)}")
    return wanted


def make_example(row: Row, names: Fields, harmful: bool, place: Place) -> Example:
    given = row.get("id")
    return Example(
        id=place.number if given is None else given,
        source=str(row.get("source") or place.path.name),
        categories=read_categories(row),
        prompt=read_text(row, names.prompt, place),
        response=read_text(row, names.response, place),
        image=read_image(row, place),
        harmful=harmful,
    )


def read_label(row: Row, name: str, place: Place) -> bool | None:
    """True for harmful, `None` for no label; where a field says "safe", true means harmless."""
    value = row.get(name)
    if value is None or value == "":
        return None
    word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
    if isinstance(value, float) and value in (0, 1):
        word = str(int(value))
    if word in WORDS:
        return WORDS[word]
    if word not in SWITCHES:
        raise InputError(
            f"{place}: {name} is {value!r}, which is no label: {FIX};"
            " or name another field with --label"
        )
    return SWITCHES[word] != inverted(name)


def inverted(name: str) -> bool:
    """Whether true in this field means harmless."""
    return "safe" in name.lower().replace("-", "_").split("_")


def read_text(row: Row, name: str | None, place: Place) -> str | None:
    value = row.get(name) if name else None
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: {name} must be a string or null, not {type(value).__name__}")
    return value


def read_image(row: Row, place: Place) -> str | None:
    image = row.get("image")
    if image and not isinstance(image, str):
        raise InputError(f"{place}: image must be a path or an address, not {type(image).__name__}")
    if not image or is_uri(image):
        return image or None
    return str(place.path.parent / image)


def read_categories(row: Row) -> tuple[str, ...]:
    """Names from `categories` or `category`: one, a list, or a mapping whose true keys count."""
    value = row.get("categories") or row.get("category")
    if isinstance(value, Mapping):
        value = [name for name, here in value.items() if here]
    if isinstance(value, str):
        value = [value]
    return tuple(dict.fromkeys(map(str, value))) if isinstance(value, list) else ()


def score_examples(
    detector: Detector, examples: Iterable[Example], *, images: bool = True
) -> Iterator[Row]:
    """One result an example, in order, as of `mmguard.rows.score_rows`; texts alone if asked."""
    lines = (
        {
            "id": example.id,
            "prompt": example.prompt,
            "response": example.response,
            "image": example.image if images else None,
        }
        for example in examples
    )
    return score_rows(detector, lines, Path())
