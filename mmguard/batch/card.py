"""The dataset card of an export: what is in it, under which licences, how it was made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmguard import __version__

if TYPE_CHECKING:
    from mmguard.batch.export import Exported

ABOUT = """\
# {name}

{records} records of {rows} rows in the format `{name}`, made by `mmguard generate` and its
`export` (mmguard {version}). A model answered each prompt; what the checks of a policy
found harmful was answered again, rewritten or refused, and the new answer had to pass the same
checks.

| | |
|---|---|
{how}

"""
LIMITS = """\
## Limits

The answers are a model's: nobody has read them all. Harmless means that the detectors above did not
flag an answer; they miss some harm, and know English best. Rejected answers, where the format has
them, are harmful on purpose: they are there to be learnt from, not to be shown. Prompts and
pictures keep the licences of their sources.
"""


def write_card(made: Exported, job: Path) -> None:
    """`README.md` with the front matter that the HuggingFace hub reads."""
    facts = json.loads((job / "job.json").read_text(encoding="utf-8"))
    body = ABOUT.format(
        name=made.name,
        records=made.records,
        rows=made.rows,
        version=__version__,
        how="\n".join(f"| {name} | `{told(value)}` |" for name, value in facts.items()),
    )
    tables = "".join(table(name, counts) for name, counts in made.facts.items())
    left = table("left out", made.left_out)
    front = yaml.safe_dump(head(made), sort_keys=False, allow_unicode=True)
    text = f"---\n{front}---\n\n{body}{tables}{left}{LIMITS}"
    (made.path / "README.md").write_text(text, encoding="utf-8")


def head(made: Exported) -> dict[str, Any]:
    files = ("train.parquet", "train.jsonl", "train.json")
    data = next((name for name in files if (made.path / name).is_file()), files[1])
    licences = sorted(made.facts.get("license", {}))
    return {
        "license": "other",
        "license_name": " and ".join(licences) or "unknown",
        "task_categories": ["image-text-to-text"],
        "tags": ["safety", "alignment", "synthetic", "mmguard"],
        "size_categories": [size(made.records)],
        "configs": [{"config_name": "default", "data_files": data}],
    }


def size(count: int) -> str:
    """The hub's word for so many."""
    steps = (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6))
    return next((name for name, most in steps if count < most), "1M<n<10M")


def told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}".strip() for name, each in value.items())
    return str(value)


def table(name: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    lines = "".join(f"| {clean(value)} | {count} |\n" for value, count in counts.most_common())
    return f"| {name} | rows |\n|---|---|\n{lines}\n"


def clean(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:80]
