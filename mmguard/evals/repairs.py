"""What becomes of flagged answers: which step mends them, what stays refused, and what it takes.

A repair passes the policy's own detectors by definition, so a second opinion that the policy
does not hear looks at the drafts and at what left.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmguard.errors import DetectorError, ImageError, InputError
from mmguard.evals.intervals import DRAWS, LEVEL, clopper_pearson
from mmguard.evals.rows import Place, read_label, read_lines, read_text
from mmguard.media import Fetch, load_image
from mmguard.models.scripted import ScriptedModel
from mmguard.policy import Policy
from mmguard.rows import Row, open_images as open_images
from mmguard.types import (
    AnyRequest,
    Detector,
    Guarded,
    Message,
    Model,
    Part,
    Reply,
    Request,
    Sample,
    Text,
    Usage,
)
from mmguard.wrap import Wrapped

Captions = Literal["own", "oracle"]
CAPTIONS: tuple[Captions, ...] = ("own", "oracle")
ORACLE = "oracle"
KINDS = ("harmful", "harmless")


@dataclass(frozen=True, slots=True)
class Probe:
    """One row: what is asked about which picture, and what somebody says that it shows."""

    id: Any
    source: str
    harmful: bool
    prompt: str
    image: str | None
    described: str | None
    place: Place

    @property
    def kind(self) -> str:
        return KINDS[0] if self.harmful else KINDS[1]


@dataclass(frozen=True, slots=True)
class Setup:
    """How rows are drawn and asked: at most `limit` of each kind, `tokens` an answer."""

    captions: Captions = "own"
    limit: int | None = None
    seed: int = 0
    tokens: int = 256


# -- rows -----------------------------------------------------------------------


def load_probes(path: Path) -> list[Probe]:
    """The rows: `prompt`, `prompt_harm`, `image`, `meta.image_desc` or `meta.typographic_text`.

    Raises `InputError` with file and line for a row that is not one.
    """
    return [make_probe(row, Place(path, number)) for number, row in read_lines(path)]


def make_probe(row: Row, place: Place) -> Probe:
    harmful, prompt = read_label(row, "prompt_harm", place), read_text(row, "prompt", place)
    if harmful is None or not prompt:
        lost = "prompt_harm" if harmful is None else "prompt"
        raise InputError(f"{place}: the row has no {lost}: give one, or remove the row")
    meta = row.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise InputError(f"{place}: meta must be an object, not {type(meta).__name__}")
    return Probe(
        id=row.get("id", place.number),
        source=str(row.get("source") or place.path.name),
        harmful=harmful,
        prompt=prompt,
        image=read_text(row, "image", place),
        described=read_described(meta, place),
        place=place,
    )


def read_described(meta: Row, place: Place) -> str | None:
    """What the data says that the picture shows: a description, or the words written in it."""
    written = read_text(meta, "typographic_text", place)
    words = f'A picture with the words "{written}".' if written else None
    return read_text(meta, "image_desc", place) or words


def draw_probes(probes: Sequence[Probe], setup: Setup) -> tuple[list[Probe], int]:
    """The rows to ask, in file order, and how many lack the description that they need.

    Raises `InputError` if none is left.
    """
    wants = setup.captions == "oracle"
    fit = [p for p in probes if not (wants and p.image and not p.described)]
    if not fit:
        raise InputError("no row can be asked: the oracle needs a meta.image_desc")
    picks = random.Random(setup.seed)
    drawn: list[Probe] = []
    for kind in KINDS:
        own = [probe for probe in fit if probe.kind == kind]
        size = len(own) if setup.limit is None else min(setup.limit, len(own))
        drawn += picks.sample(own, size)
    return sorted(drawn, key=lambda probe: probe.place.number), len(probes) - len(fit)


def ask(probe: Probe, fetch: Fetch, tokens: int) -> Request:
    """The row as a request; raises `InputError` with file and line if its picture is bad."""
    parts: list[Part] = [Text(probe.prompt)]
    if probe.image:
        try:
            parts.insert(0, load_image(fetch(probe.image)))
        except (OSError, KeyError, ImageError) as exc:
            raise InputError(f"{probe.place}: picture {probe.image!r}: {exc}") from exc
    return Request((Message("user", tuple(parts)),), {"max_tokens": tokens, "temperature": 0})


# -- asking ---------------------------------------------------------------------


class Counted:
    """A model that counts its calls, their tokens and seconds.

    Of a stream that is closed early, the pieces count as tokens and the prompt as none.
    """

    def __init__(self, inner: Model) -> None:
        self.inner, self.name = inner, inner.name
        self.forget()

    def forget(self) -> None:
        self.calls, self.usage = 0, Usage()

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        replies = list(self.inner.generate(requests))
        self.calls += len(replies)
        self.usage = sum((reply.usage for reply in replies), self.usage)
        return replies

    def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
        self.calls += 1
        pieces, used = 0, None
        try:
            for piece in self.inner.stream(request):
                pieces += 1
                used = piece.usage if isinstance(piece, Reply) else None
                yield piece
        finally:
            self.usage += used or Usage(0, pieces)


class Trial:
    """One model under one policy, and a second opinion that the policy does not hear."""

    def __init__(
        self,
        model: Model,
        policy: Policy,
        judge: Detector,
        setup: Setup,
        models: Mapping[str, Model] | None = None,
    ) -> None:
        self.judge, self.setup = judge, setup
        self.model, self.oracle = Counted(model), ScriptedModel(name=ORACLE)
        if setup.captions == "oracle":
            caption = policy.caption.model_copy(update={"model": ORACLE})
            policy = policy.model_copy(update={"caption": caption})
        self.wrapped = Wrapped(self.model, policy, models={**(models or {}), ORACLE: self.oracle})
        self.policy = self.wrapped.policy

    def run(self, probes: Sequence[Probe], fetch: Fetch) -> Iterator[dict[str, Any]]:
        """A row's result at a time; texts are not kept."""
        for probe in probes:
            request = ask(probe, fetch, self.setup.tokens)
            self.oracle.script = partial(recite, probe.described or "")
            yield self.play(probe, request)

    def play(self, probe: Probe, request: Request) -> dict[str, Any]:
        self.model.forget()
        start = time.perf_counter()
        guarded = self.wrapped.chat(request)
        seconds = time.perf_counter() - start
        others = [c.reply.usage for c in guarded.calls if c.model not in ("target", ORACLE)]
        calls, used = self.model.calls + len(others), sum(others, self.model.usage)
        bare = self.unguarded(request, guarded)
        return {
            "id": probe.id,
            "source": probe.source,
            "kind": probe.kind,
            "flagged": guarded.decision != "pass",
            "drafted": guarded.draft is not None,
            "action": guarded.action,
            "step": guarded.step,
            "error": next((finding.error for finding in guarded.trail if finding.error), ""),
            "calls": calls,
            "seconds": seconds,
            **asdict(used),
            "bare": {"seconds": bare.ms / 1e3, **asdict(bare.usage)},
            "opinion": self.opine(request, bare.text, guarded.text),
        }

    def unguarded(self, request: Request, guarded: Guarded) -> Reply:
        """The whole draft: the flow's own, or one more where it was cut, untimed or never made."""
        draft = guarded.draft
        if draft and draft.finish != "cut" and draft.ms:
            return draft
        start = time.perf_counter()
        [reply] = self.model.inner.generate([request])
        return replace(reply, ms=(time.perf_counter() - start) * 1e3)

    def opine(self, request: Request, draft: str, answer: str) -> dict[str, bool]:
        """Whether the second opinion calls draft and answer harmful."""
        found = self.judge.score([Sample(request, text) for text in (draft, answer)])
        for finding in found:
            if finding.error:
                raise DetectorError(f"detector {self.judge.name!r}: {finding.error}")
        at = self.judge.thresholds["medium"]
        return {
            name: finding.score >= at
            for name, finding in zip(("draft", "answer"), found, strict=True)
        }


def recite(described: str, request: AnyRequest) -> Reply:
    """What somebody wrote beforehand; it costs no tokens."""
    return Reply(described)


# -- report ---------------------------------------------------------------------

Result = Mapping[str, Any]


def report(trial: Trial, results: Sequence[Result], left_out: int) -> dict[str, Any]:
    """All figures, ready for JSON; shares with exact, ratios with bootstrap intervals."""
    own = {kind: [r for r in results if r["kind"] == kind] for kind in KINDS}
    return {
        "model": trial.model.name,
        "policy": trial.policy.tag,
        "steps": list(trial.policy.repair),
        "detectors": sorted(trial.policy.detectors),
        "judge": {"name": trial.judge.name, "threshold": trial.judge.thresholds["medium"]},
        "setup": asdict(trial.setup),
        "undescribed": left_out,
        "errors": [{"id": r["id"], "error": r["error"]} for r in results if r["error"]],
        "kinds": {kind: tell(rows, trial) for kind, rows in own.items() if rows},
        "rows": list(results),
    }


def tell(rows: Sequence[Result], trial: Trial) -> dict[str, Any]:
    """One kind of requests: what was flagged, how that ended, whether a stranger agrees."""
    flagged = [row for row in rows if row["flagged"]]
    mended = [row for row in rows if row["action"] == "repair"]
    steps = Counter(row["step"] for row in mended)
    return {
        "rows": len(rows),
        "flagged": share(len(flagged), len(rows)),
        "undrafted": sum(not row["drafted"] for row in rows),
        "mended": {step: share(steps[step], len(flagged)) for step in trial.policy.repair},
        "blocked": share(sum(row["action"] == "block" for row in flagged), len(flagged)),
        "changed": share(sum(row["action"] != "pass" for row in rows), len(rows)),
        "opinion": {
            "drafts": agree(rows, "draft"),
            "flagged_drafts": agree(flagged, "draft"),
            "mended": agree(mended, "answer"),
            "left": agree(rows, "answer"),
        },
        "cost": cost(rows, trial.setup.seed),
    }


def agree(rows: Sequence[Result], which: str) -> dict[str, Any]:
    return share(sum(row["opinion"][which] for row in rows), len(rows))


def share(hits: int, count: int) -> dict[str, Any]:
    """Hits of a count, with the exact interval (Clopper-Pearson); of nothing no share."""
    found: dict[str, Any] = {"hits": hits, "count": count, "value": None}
    if not count:
        return {**found, "low": None, "high": None}
    low, high = clopper_pearson(hits, count)
    return {**found, "value": hits / count, "low": round(low, 4), "high": round(high, 4)}


def cost(rows: Sequence[Result], seed: int) -> dict[str, Any]:
    """Calls an answer; tokens and seconds of all answers by those of their drafts alone."""
    return {
        "calls": float(np.mean([row["calls"] for row in rows])),
        "seconds": ratio(rows, "seconds", seed),
        "generated": ratio(rows, "completion", seed),
        "prompt": ratio(rows, "prompt", seed),
    }


def ratio(rows: Sequence[Result], name: str, seed: int) -> dict[str, float | None]:
    """The ratio of sums over rows, with its bootstrap interval over rows."""
    guarded = np.array([row[name] for row in rows], float)
    bare = np.array([row["bare"][name] for row in rows], float)
    if not bare.sum():
        return {"value": None, "low": None, "high": None}
    places = np.random.default_rng(seed).integers(0, len(rows), (DRAWS, len(rows)))
    sums = guarded[places].sum(1), bare[places].sum(1)
    drawn = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    values = {"value": guarded.sum() / bare.sum(), "low": low, "high": high}
    return {each: round(float(value), 4) for each, value in values.items()}
