"""Rows of prompts and pictures, from whatever holds them, in their order.

By its ending a file is JSONL, JSON (a list of rows, as LLaVA's), CSV or Parquet, the first three
gzipped or not; a folder is what `datasets` saved, or else pictures, of which each is asked
every line of a list of prompts. A row that cannot be read is an error in its place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mmguard.errors import InputError, MissingExtra
from mmguard.rows import Row, open_text, read_rows

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# A CSV field may hold a picture as base64.
csv.field_size_limit(2**27)
Rows = Iterator[Row | InputError]


def read_input(path: Path, prompts: Path | None = None) -> Rows:
    """All rows of a file or folder; `prompts` is for a folder of pictures.

    Raises `InputError` for what is not there or of no known kind.
    """
    if not path.exists():
        raise InputError(f"{path} is not there")
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return read_saved(path) if saved else read_folder(path, prompts)
    if prompts:
        raise InputError(f"a list of prompts is for a folder of pictures, and {path} is a file")
    ending = next((s for s in reversed(path.suffixes) if s != ".gz"), "")
    if ending not in READERS:
        known = ", ".join(sorted(READERS))
        raise InputError(f"{path}: nobody here reads {ending or 'a file without ending'}: {known}")
    return READERS[ending](path)


def read_json(path: Path) -> Rows:
    with open_text(path) as file:
        try:
            rows = json.load(file)
        except ValueError as exc:
            raise InputError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(rows, list):
        raise InputError(f"{path}: give a list of rows, not {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        told = f"{path}: row {number} is an object, not {type(row).__name__}"
        yield row if isinstance(row, dict) else InputError(told)


def read_csv(path: Path) -> Rows:
    with open_text(path) as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            if None in row or None in row.values():
                yield InputError(f"{path}:{number}: not as many fields as the first line names")
            else:
                yield {name: value for name, value in row.items() if value}


def read_parquet(path: Path) -> Rows:
    try:
        import pyarrow.parquet as parquet
    except ImportError as exc:
        raise MissingExtra("pyarrow", "batch", "reading Parquet") from exc
    try:
        with closing(parquet.ParquetFile(path)) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} cannot be read as Parquet: {exc}") from exc


def read_saved(path: Path) -> Rows:
    """A `Dataset` saved to disk, its pictures as the bytes or paths that they are."""
    try:
        import datasets
    except ImportError as exc:
        raise MissingExtra("datasets", "batch", "reading a folder of the library") from exc
    found: Any = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        raise InputError(f"{path} holds several splits: name one, {path}/{next(iter(found))}")
    yield from found.decode(False) if hasattr(found, "decode") else undecoded(found, datasets)


def undecoded(found: Any, datasets: Any) -> Any:
    for name, kind in found.features.items():
        if isinstance(kind, datasets.Image):
            found = found.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(kind, "feature", None), datasets.Image):
            found = found.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return found


def read_folder(path: Path, prompts: Path | None) -> Rows:
    """Each picture of the folder, by name, with each prompt."""
    if prompts is None:
        raise InputError(f"{path} is a folder of pictures: give --prompts, a file with one a line")
    asked = read_prompts(prompts)
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
    if not found:
        raise InputError(f"{path} holds no pictures ({', '.join(sorted(PICTURES))})")
    for picture in found:
        for row in asked:
            name = str(picture.relative_to(path))
            yield row if isinstance(row, InputError) else {**row, "image": name}


def read_prompts(path: Path) -> list[Row | InputError]:
    """Lines of text, or JSONL rows that say more than the prompt."""
    if ".jsonl" in path.suffixes:
        return list(read_rows(path))
    with open_text(path) as lines:
        return [{"prompt": line.strip()} for line in lines if line.strip()]


READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_rows,
    ".parquet": read_parquet,
}
