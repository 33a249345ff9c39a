"""One job: every row of an input answered under a policy, once, into a folder; resumable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from mmguard.batch.engine import answer
from mmguard.batch.folder import Folder
from mmguard.batch.inputs import Rows, read_input
from mmguard.batch.items import Item, make_item
from mmguard.batch.made import fault, identify, make_row
from mmguard.bundles import load_bundle, shipped
from mmguard.errors import InputError
from mmguard.media import Fetch, fetch
from mmguard.policy import Policy
from mmguard.rows import Row, is_uri, open_images
from mmguard.types import Guarded
from mmguard.wrap import Wrapped

# So many rows are read before their rejected share counts.
PATIENCE = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked and how: `size` rows under way at once, at most `limit` rows read.

    Pictures' names start at `images`, a folder or a tar; by default beside the input. The job
    stops when more than the share `rejected` of its rows cannot be answered. `facts` are
    what rows do not say themselves: `source`, `license`.
    """

    source: Path
    prompts: Path | None = None
    images: Path | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: {"max_tokens": 512})
    size: int = 8
    limit: int | None = None
    rejected: float = 0.05
    facts: Mapping[str, Any] = field(default_factory=dict)


class Job:
    """A plan at work on a folder; `stop` set, it takes no more rows and ends those under way.

    `counts` are of this run: rows by action (`pass`, `repair`, `block`), `known` from an earlier
    run, `rejected`. Raises `InputError` for a folder of another job.
    """

    def __init__(self, wrapped: Wrapped, plan: Plan, out: Path) -> None:
        self.wrapped, self.plan = wrapped, plan
        self.counts: Counter[str] = Counter()
        self.read = 0
        self.stop = Event()
        facts = tell_job(wrapped, plan)
        self.key = " ".join(str(facts[name]) for name in sorted(facts))
        self.folder = Folder(out, facts)
        self.asked: dict[int, str] = {}

    def run(self) -> Iterator[Counter[str]]:
        """The counts after each turn. Raises `InputError` once too many rows are rejected."""
        try:
            with open_images(self.plan.images or beside(self.plan.source)) as images:
                for found in answer(
                    self.wrapped, self.items(named(images)), self.plan.size, self.plan.options
                ):
                    self.settle(found)
                    yield self.counts
            yield self.counts
        finally:
            self.folder.close()

    def items(self, images: Fetch) -> Iterator[Item]:
        """The rows that are not yet answered, from the input."""
        for number, row in enumerate(self.rows(), 1):
            if self.stop.is_set() or number - 1 == self.plan.limit:
                return
            self.read = number
            try:
                if isinstance(row, InputError):
                    raise row
                item = make_item(number, row, images, self.known())
            except Exception as exc:
                self.reject(number, str(exc), {} if isinstance(row, InputError) else row)
                continue
            name = identify(self.key, item.request)
            if name in self.folder.seen or name in self.asked.values():
                self.counts["known"] += 1
                continue
            self.asked[number] = name
            yield item

    def rows(self) -> Rows:
        return read_input(self.plan.source, self.plan.prompts)

    def known(self) -> Mapping[str, Any]:
        return {"source": self.plan.source.name, **self.plan.facts}

    def settle(self, found: list[tuple[Item, Guarded | Exception]]) -> None:
        """Keep the answers, and reject what is none."""
        rows = []
        for item, guarded in found:
            name = self.asked.pop(item.number)
            told = str(guarded) if isinstance(guarded, Exception) else fault(guarded)
            if isinstance(guarded, Exception) or told:
                self.reject(item.number, told, {"messages": item.request.text, **item.facts})
                continue
            rows.append({"id": name, **make_row(item, guarded, self.folder.keep)})
            self.counts[guarded.action] += 1
        self.folder.add(rows)

    def reject(self, number: int, reason: str, row: Row) -> None:
        self.folder.reject(number, reason, row)
        self.counts["rejected"] += 1
        if self.read >= PATIENCE and self.counts["rejected"] > self.plan.rejected * self.read:
            share = f"{self.counts['rejected']} of {self.read} rows"
            raise InputError(
                f"{share} cannot be answered, more than {self.plan.rejected:.0%}; the last one"
                f" because: {reason}. See {self.folder.path}/rejected.jsonl, or allow more"
            )


def tell_job(wrapped: Wrapped, plan: Plan) -> dict[str, Any]:
    """What makes one job another: rows of different jobs do not mix."""
    policy: Policy = wrapped.policy
    return {
        "policy": policy.tag,
        "model": wrapped.model.name,
        "options": dict(plan.options),
        "detectors": {name: version(name) for name in sorted(policy.detectors)},
    }


def version(detector: str) -> str:
    """The version of a shipped bundle, and a hash of its files."""
    if detector not in shipped():
        return ""
    manifest = load_bundle(detector).manifest
    files = hashlib.sha256(repr(sorted(manifest.files.items())).encode()).hexdigest()
    return f"{manifest.version}+{files[:8]}"


def beside(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def named(images: Fetch) -> Fetch:
    """Pictures by URL, or else by name."""
    return lambda name: fetch(name) if is_uri(name) else images(name)
