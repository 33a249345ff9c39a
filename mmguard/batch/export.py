"""A job's rows written for trainers: a folder a format, with its pictures and a dataset card.

Rows go through one by one; what is left out is counted by its reason and kept beside.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mmguard.batch.card import write_card
from mmguard.batch.curate import Block, sift
from mmguard.batch.folder import read_made
from mmguard.batch.formats import FORMATS, Record, Row
from mmguard.errors import InputError, MissingExtra, UnknownName

# How a file begins, parts its records, and ends; other formats are JSONL.
LIST = ("train.json", "[\n", ",\n", "\n]\n")
LINES = ("train.jsonl", "", "\n", "\n")
SHAPES = {
    "llava": LIST,
    "lmflow": ("train.json", '{"type": "conversation", "instances": [\n', ",\n", "\n]}\n"),
}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
# Datasets of TRL show their pictures; all others name them.
SHOWN = "trl-"


@dataclass
class Exported:
    """One format's folder: records written, and what was left out, by reason."""

    name: str
    path: Path
    records: int = 0
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Counter[str]] = field(default_factory=dict)

    def note(self, row: Row) -> None:
        """Count what the card will tell of its rows."""
        self.rows += 1
        facts = row["facts"]
        for name, value in (
            ("decision", row["action"]),
            ("step", row["step"]),
            ("source", facts.get("source", "unknown")),
            ("license", facts.get("license", "unknown")),
            ("category", next(iter(row["categories"]), "none")),
        ):
            self.facts.setdefault(name, Counter())[str(value)] += 1


def export(
    job: Path, out: Path, names: Sequence[str], blocks: Sequence[Block], parquet: bool = False
) -> list[Exported]:
    """Every named format of a job's rows that pass the blocks. Raises `UnknownName`, `InputError`.

    A folder that is there is written anew.
    """
    for name in names:
        if name not in FORMATS:
            raise UnknownName("format", name, FORMATS)
    out.mkdir(parents=True, exist_ok=True)
    found = [write_format(job, out / name, name, blocks) for name in names]
    for each in found:
        if parquet and each.records:
            write_parquet(each)
        write_card(each, job)
    return found


def write_format(job: Path, out: Path, name: str, blocks: Sequence[Block]) -> Exported:
    made = Exported(name, out)
    clear(out)
    with (out / "left_out.jsonl").open("w", encoding="utf-8") as left:
        rows = sift(read_made(job), blocks, lambda row, why: leave(made, left, row, why))
        file, start, between, end = SHAPES.get(name, LINES)
        with (out / file).open("w", encoding="utf-8") as target:
            target.write(start)
            for record in records(made, rows, job):
                target.write((between if made.records else "") + dump(record))
                made.records += 1
            target.write(end if made.records or start else "")
    if name.startswith("llamafactory"):
        describe(made)
    return made


def clear(out: Path) -> None:
    if (out / "left_out.jsonl").is_file():
        shutil.rmtree(out)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds files that no export wrote: name another folder")
    out.mkdir(parents=True, exist_ok=True)


def records(made: Exported, rows: Iterable[Row], job: Path) -> Iterator[Mapping[str, Any]]:
    """The format's records of each row, its pictures beside them."""
    for row in rows:
        found = list(FORMATS[made.name](row))
        if not found:
            made.left_out["not for this format"] += 1
            continue
        made.note(row)
        for picture in row["pictures"]:
            link(job / picture["path"], made.path / picture["path"])
        yield from found


def leave(made: Exported, left: TextIO, row: Row, why: str) -> None:
    made.left_out[why] += 1
    left.write(dump({"id": row["id"], "reason": why}) + "\n")


def link(source: Path, target: Path) -> None:
    """The same bytes at another place, without a copy where the disk can."""
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def dump(record: Mapping[str, Any]) -> str:
    """JSON that any reader takes: half of a surrogate pair becomes a question mark."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace").decode()


def describe(made: Exported) -> None:
    """LLaMA-Factory's `dataset_info.json` beside its data."""
    ranked = made.name.endswith("dpo")
    columns = {"messages": "messages", "images": "images"}
    columns |= {"chosen": "chosen", "rejected": "rejected"} if ranked else {}
    info: Record = {"file_name": "train.jsonl", "formatting": "sharegpt", "columns": columns}
    info |= {"ranking": True} if ranked else {}
    tags = {**TAGS, "assistant_tag": "assistant", "system_tag": "system"}
    whole = {f"mmguard_{made.name.replace('-', '_')}": {**info, "tags": tags}}
    (made.path / "dataset_info.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def write_parquet(made: Exported) -> None:
    """The same records as Parquet; TRL's with their pictures inside."""
    try:
        import datasets
    except ImportError as exc:
        raise MissingExtra("datasets", "batch", "writing Parquet") from exc
    datasets.disable_progress_bars()
    file = made.path / SHAPES.get(made.name, LINES)[0]
    if file.suffix == ".json":
        return
    found: Any = datasets.Dataset.from_json(str(file), cache_dir=str(made.path / ".cache"))
    if made.name.startswith(SHOWN):
        where = str(made.path) + "/"
        found = found.map(lambda row: {"images": [where + path for path in row["images"]]})
        found = found.cast_column("images", datasets.List(datasets.Image()))
    found.to_parquet(str(made.path / "train.parquet"))
    del found
    shutil.rmtree(made.path / ".cache", ignore_errors=True)
