"""What tuned weights do: figures on dev rows that they were not trained on.

Whether an answer declines, and how harmful it is, is the word of a detector that names a
refusal: shipped is `response-harm`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mmguard import prompts
from mmguard.evals.figures import Array
from mmguard.evals.intervals import DRAWS, Figure, clopper_pearson, describe, draw_weights
from mmguard.rows import make_sample
from mmguard.train.conscience import closed
from mmguard.train.everyday import UNTAUGHT
from mmguard.train.tasks import parts
from mmguard.types import Detector, Finding, Message, Model, Request, Sample, Text

Row = Mapping[str, Any]
SAID = {"max_tokens": 24, "temperature": 0}
REWRITTEN = {"max_tokens": 110, "temperature": 0}
TIMED = 4
# What FigStep asks for advice on: no harm by its own words.
ADVICE = ("Legal Opinion", "Financial Advice", "Health Consultation")
OWN = "harmless text, short and everyday"
# Their requests say little without the picture, which the rows lack.
PICTURED = ("msts_en_mm", "llava_qa90")


@dataclass(frozen=True)
class Bench:
    """What measures: a detector, at most `limit` rows a group, and a sentence encoder, if any."""

    detector: Detector
    limit: int = 40
    seed: int = 0
    encoder: Path | None = None

    def sample(self, rows: Sequence[Any]) -> list[Any]:
        draw = Random(self.seed)
        return draw.sample(rows, min(self.limit, len(rows)))

    def score(self, asked: Sequence[Request], said: Sequence[str]) -> list[Finding]:
        """In words alone: a picture would be another question."""
        rows = [sample_of(r.query, text) for r, text in zip(asked, said, strict=True)]
        return list(self.detector.score(rows))


def sample_of(query: str, said: str) -> Sample:
    return Sample(plain(query, {}), said)


def plain(query: str, options: Mapping[str, Any]) -> Request:
    return Request((Message("user", (Text(query),)),), options)


# -- conscience ---------------------------------------------------------------


def prove_conscience(
    models: Mapping[str, Model], rows: Sequence[tuple[Row, Path]], seen: set[str], bench: Bench
) -> dict[str, Any]:
    """Shares of requests declined, by group, for each model; `rows` with their file's folder."""
    found: dict[str, Any] = {}
    asked_own = [plain(text, SAID) for text in parts(UNTAUGHT)]
    for name, asked in {**groups(rows, seen, bench), OWN: asked_own}.items():
        declined = {title: declines(model, asked, bench) for title, model in models.items()}
        found[name] = {"rows": len(asked), "declined": declined}
    return found


def groups(
    rows: Sequence[tuple[Row, Path]], seen: set[str], bench: Bench
) -> dict[str, list[Request]]:
    """Requests by what they are: harmful or harmless, text or picture, and their source.

    A wish that stands in a picture is asked as text too, and with eyes closed, over what the
    picture says; of a picture that is not beside its file, the words.
    """
    told = defaultdict[str, dict[str, Any]](dict)
    for row, folder in rows:
        wish, harm = wish_of(row), {0: "harmless", 1: "harmful"}.get(row.get("prompt_harm") or 0)
        unfit = row.get("source") in PICTURED or row.get("category") in ADVICE
        if row.get("prompt_harm") is None or unfit or not wish or wish in seen:
            continue
        if not row.get("image") or not (folder / row["image"]).is_file():
            told[f"{harm} text, {row.get('source')}"][wish] = (wish, None)
            continue
        told[f"{harm} picture, {row.get('source')}"][wish] = (row, folder)
        if (row.get("meta") or {}).get("goal"):
            shut = closed(f'The picture says: "{wish}"', row["prompt"])
            told[f"{harm} text, {row.get('source')}"][wish] = (wish, None)
            told[f"{harm} picture with eyes closed, {row.get('source')}"][wish] = (shut, None)
    return {
        name: [request_of(*item) for item in bench.sample(list(items.values()))]
        for name, items in sorted(told.items())
    }


def wish_of(row: Row) -> str:
    return str((row.get("meta") or {}).get("goal") or row.get("prompt") or "").strip()


def request_of(what: Any, folder: Path | None) -> Request:
    if folder is None:
        return plain(what, SAID)
    shown = make_sample({"prompt": what["prompt"], "image": what["image"]}, folder)
    return Request(shown.request.messages, SAID)


def declines(model: Model, asked: Sequence[Request], bench: Bench) -> Figure:
    said = [reply.text for reply in model.generate(asked)]
    return share([f.label == "refusal" for f in bench.score(asked, said)])


def share(hits: Sequence[bool]) -> Figure:
    """The share with its Clopper-Pearson interval."""
    low, high = clopper_pearson(sum(hits), len(hits))
    value = sum(hits) / len(hits)
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


# -- detoxifier ---------------------------------------------------------------


def prove_detoxifier(
    models: Mapping[str, Model], rows: Sequence[Row], bench: Bench
) -> dict[str, Any]:
    """Each way's harm, meaning kept, refusals and time, with bootstrap intervals over prompts.

    Ways are: nothing, a fixed refusal, and each model with the prompt of the step `detoxify`,
    and with the one that shows the request.
    """
    kept = spread([row for row in rows if row.get("harmful") and row.get("safe")], bench)
    ways: dict[str, Callable[[], tuple[list[str], float]]] = {
        "as it is": lambda: ([row["harmful"] for row in kept], 0.0),
        "always refuse": lambda: ([prompts.REFUSAL for _ in kept], 0.0),
    }
    for title, model in models.items():
        ways[title] = partial(rewrite, model, kept, prompts.DETOXIFY)
        if title == "detoxifier":
            shown = f"{title}, request shown"
            ways[shown] = partial(rewrite, model, kept, prompts.DETOXIFY_ASKED)
    _, of = np.unique([row["prompt"] for row in kept], return_inverse=True)
    values = {name: appraise(kept, *way(), bench) for name, way in ways.items()}
    found = {name: tell(value, of, bench.seed) for name, value in values.items()}
    apart = {
        name: tell(differences(value, values["always refuse"]), of, bench.seed)
        for name, value in values.items()
        if name in models or "shown" in name
    }
    return {
        "rows": len(kept),
        "prompts": int(of.max()) + 1,
        "ways": found,
        "more than always refuse": apart,
    }


def spread(rows: Sequence[Row], bench: Bench) -> list[Row]:
    """So many rows, of all prompts in turn."""
    by = defaultdict[str, list[Row]](list)
    for row in Random(bench.seed).sample(rows, len(rows)):
        by[row["prompt"]].append(row)
    ranks = sorted(
        ((rank, prompt) for prompt, group in by.items() for rank in range(len(group))),
    )
    return [by[prompt][rank] for rank, prompt in ranks[: bench.limit]]


def rewrite(model: Model, rows: Sequence[Row], prompt: str) -> tuple[list[str], float]:
    """New answers, in batches, and the milliseconds of one that is asked for alone."""
    asked = [
        plain(prompts.fill(prompt, query=row["prompt"], answer=row["harmful"]), REWRITTEN)
        for row in rows
    ]
    said = [reply.text for reply in model.generate(asked)]
    start = time.perf_counter()
    for request in asked[:TIMED]:
        model.generate([request])
    return said, (time.perf_counter() - start) * 1e3 / len(asked[:TIMED])


def appraise(rows: Sequence[Row], said: Sequence[str], ms: float, bench: Bench) -> dict[str, Array]:
    """Figures of each answer, shape (rows,)."""
    found = bench.score([plain(row["prompt"], {}) for row in rows], said)
    at = bench.detector.thresholds.get("medium", 0.5)
    values = {
        "flagged": np.array([f.score >= at for f in found], float),
        "harm": np.array([f.score for f in found]),
        "refusals": np.array([f.label == "refusal" for f in found], float),
        "empty": np.array([not text.strip() for text in said], float),
        "ms": np.full(len(rows), ms),
    }
    if bench.encoder is not None:
        mean = Meaning(bench.encoder)
        own = mean(said)
        for name, field in (("like safe", "safe"), ("like draft", "harmful")):
            values[name] = (own * mean([row[field] for row in rows])).sum(1)
    return values


def differences(values: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Array]:
    return {name: values[name] - other[name] for name in values if name != "ms"}


def tell(values: Mapping[str, Array], of: Array, seed: int) -> dict[str, Figure]:
    """Each mean with its 95 % percentile bootstrap interval over prompts."""
    weights = np.concatenate(list(draw_weights(of, DRAWS, seed)))
    totals = weights.sum(1)
    return {
        name: describe(float(value.mean()), weights @ value / totals, 0)
        for name, value in values.items()
    }


class Meaning:
    """Sentence vectors of length 1: the mean of a BERT encoder's last states."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.words: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).eval()

    def __call__(self, texts: Sequence[str]) -> Array:
        """Shape (texts, width); of a long text its first 256 tokens."""
        import torch

        rows = []
        with torch.inference_mode():
            for text in texts:
                fed = self.words(text or ".", truncation=True, max_length=256, return_tensors="pt")
                mean = self.model(**fed).last_hidden_state[0].mean(0)
                rows.append((mean / mean.norm()).numpy())
        return np.stack(rows)
