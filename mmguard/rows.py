"""Rows of a JSONL file, scored in order and in batches: what `mmguard check FILE` does.

A row that cannot be scored has its error in its place; nothing is dropped.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

from mmguard.asks import Score
from mmguard.drive import call
from mmguard.errors import InputError
from mmguard.media import Fetch, load_image
from mmguard.runtime import Local
from mmguard.types import Detector, Finding, Message, Part, Request, Sample, Text

Row = Mapping[str, Any]
BATCH = 64


def open_text(path: Path, mode: str = "rt") -> TextIO:
    """The file as text, through gzip if its name ends in `.gz`."""
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, mode, encoding="utf-8"))
    return cast(TextIO, path.open(mode, encoding="utf-8"))


def read_rows(path: Path) -> Iterator[Row | InputError]:
    """Each line as a mapping, or as the error that it is."""
    return (row for _, row in number_rows(path))


def number_rows(path: Path) -> Iterator[tuple[int, Row | InputError]]:
    """The same with each line's number, from 1."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, read_row(path, number, line)


def read_row(path: Path, number: int, line: str) -> Row | InputError:
    try:
        row = json.loads(line)
    except ValueError as exc:
        return InputError(f"{path}:{number}: not JSON: {exc}")
    if not isinstance(row, dict):
        return InputError(f"{path}:{number}: a row is an object, not {type(row).__name__}")
    return row


def make_sample(row: Row, folder: Path) -> Sample:
    """The row's `prompt`, `response` and `image` (a path beside the file) as a sample."""
    prompt, response = row.get("prompt"), row.get("response")
    for field, value in (("prompt", prompt), ("response", response)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{field} must be a string, not {type(value).__name__}")
    if prompt is None and response is None:
        raise InputError("a row needs a prompt, a response, or both")
    parts: list[Part] = [Text(prompt or "")]
    if image := row.get("image"):
        parts.insert(0, load_image(image if is_uri(image) else folder / image))
    return Sample(Request((Message("user", tuple(parts)),)), response)


def is_uri(image: str) -> bool:
    return image.startswith(("data:", "http://", "https://"))


def score_rows(detector: Detector, rows: Iterable[Row | InputError], folder: Path) -> Iterator[Row]:
    """One result a row, in order: `id, score, label, categories, error`.

    Pictures are opened for a detector that looks at them only.
    """
    runtime, pending = Local({}, {detector.name: detector}), iter(rows)
    show = sees(detector)
    while batch := list(islice(pending, BATCH)):
        samples = [attempt(row, folder, show) for row in batch]
        asks = [Score(detector.name, s) for s in samples if isinstance(s, Sample)]
        found = iter(call(asks, runtime) if asks else ())
        for row, sample in zip(batch, samples, strict=True):
            yield result(row, next(found) if isinstance(sample, Sample) else sample)


def sees(detector: Detector) -> bool:
    """Whether it looks at pictures: yes, unless it has an attribute `sees` that says no."""
    return bool(getattr(detector, "sees", True))


def attempt(row: Row | InputError, folder: Path, show: bool) -> Sample | Exception:
    if isinstance(row, InputError):
        return row
    try:
        return make_sample(row if show else {**row, "image": None}, folder)
    except Exception as exc:
        return exc


def result(row: Row | InputError, found: Finding | Exception) -> Row:
    given = None if isinstance(row, InputError) else row.get("id")
    if isinstance(found, Finding) and not found.error and 0 <= found.score <= 1:
        categories = dict(found.categories)
        return {
            "id": given,
            "score": found.score,
            "label": found.label,
            "categories": categories,
            "error": None,
        }
    error = found.error or f"score {found.score}" if isinstance(found, Finding) else str(found)
    return {"id": given, "score": None, "label": None, "categories": {}, "error": error}


def count_rows(path: Path) -> int:
    """How many rows `read_rows` will give."""
    with open_text(path) as lines:
        return sum(1 for line in lines if line.strip())


@contextmanager
def open_images(path: Path) -> Iterator[Fetch]:
    """What reads a picture's bytes by its name, from a folder or a tar.

    Raises `InputError` for what is neither.
    """
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    try:
        archive = tarfile.open(path)  # noqa: SIM115  # closed below
    except (OSError, tarfile.TarError) as exc:
        raise InputError(f"{path} is no folder and no tar of pictures: {exc}") from exc
    with archive:
        yield partial(extract, archive)


def extract(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise KeyError(name)
    return member.read()
