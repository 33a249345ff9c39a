"""The recipe of the linear detector: from rows of data to a bundle, the same bytes each time.

Knows scikit-learn, which fits; the features are those that the detector itself computes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mmguard.bundles import Manifest
from mmguard.detect.linear import (
    BITS,
    WINDOW,
    Head,
    LinearDetector,
    answer_fields,
    clean,
    request_fields,
)
from mmguard.errors import InputError, MissingExtra
from mmguard.train.card import describe
from mmguard.train.measure import Row, alarms, choose, load_rows, measure, scores

if TYPE_CHECKING:
    from mmguard.detect.linear import Hashes

NAME = "response-harm-linear"
# A source's say in the fit: chit-chat is another domain, bare toxic texts are no pairs, and
# harmless instructions are what most traffic looks like.
SOURCES = {"diasafety_train": 0.5, "benign_instruct": 16.0, "short": 1.0, "aux": 0.2}
SHORTENED = ("benign_instruct",)
STRENGTH = {"answer": 1.0, "request": 4.0}
FOLDS = 5
FITS = 2 * (FOLDS + 1)


@dataclass(frozen=True)
class Task:
    """What one head learns: rows as a sparse matrix, labels, and each row's weight."""

    rows: Any
    labels: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]


def train_linear(
    data: Sequence[Path],
    dev: Path,
    out: Path,
    *,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train both heads on `data`, measure on `dev`, write the bundle; returns its `eval.json`.

    Rows have `prompt, response, prompt_harm, response_harm, source`; a label may be null.
    `tick` is called after each of the `FITS`. Raises `InputError` naming the file and line of
    a bad row.
    """
    rows = [row for path in data for row in load_rows(path)]
    held = load_rows(dev)
    heads = fit_heads(rows, seed, tick)
    thresholds = choose(*scores(LinearDetector(NAME, {}, heads), held, "answer"))
    heads["request"] = align(heads, held, thresholds)
    result = measure(LinearDetector(NAME, thresholds, heads), held)
    result["data"] = {path.name: digest(path.read_bytes()) for path in (*data, dev)}
    write_bundle(out, heads, result)
    return result


def fit_heads(
    rows: Sequence[Row], seed: int, tick: Callable[[], object] = lambda: None
) -> dict[str, Head]:
    """Both heads, in eight bits, their logits scaled on rows that the fits had not seen."""
    whole = [*rows, *shorten(rows, seed)]
    return {
        name: squeeze(fit(make_task(name, whole), name, seed, tick))
        for name in ("answer", "request")
    }


def shorten(rows: Sequence[Row], seed: int) -> list[Row]:
    """Harmless instructions once more, their answers cut to a few words.

    The shortest texts of the data are chit-chat and slurs: without these, a bare greeting
    looks like them.
    """
    draw = np.random.default_rng(seed)
    kept = [row for row in rows if row.get("source") in SHORTENED and row.get("response")]
    return [
        {**row, "source": "short", "response": " ".join(row["response"].split()[:words])}
        for row, words in zip(kept, draw.integers(1, 16, len(kept)).tolist(), strict=True)
        if row.get("response_harm") == 0
    ]


def make_task(head: str, rows: Sequence[Row]) -> Task:
    label = f"{'response' if head == 'answer' else 'prompt'}_harm"
    text = "response" if head == "answer" else "prompt"
    kept = [row for row in rows if row.get(label) is not None and row.get(text)]
    if head == "request":
        kept = list({row["prompt"]: row for row in kept}.values())
    labels = np.array([row[label] for row in kept], dtype=int)
    if len(set(labels.tolist())) < 2:
        raise InputError(f"the data has not both values of {label}: nothing can be learnt")
    return Task(stack(fields(head, row) for row in kept), labels, weigh(head, kept, labels))


def fields(head: str, row: Row) -> list[Hashes]:
    asked = request_fields(clean(row.get("prompt") or "")[-WINDOW:])
    return asked if head == "request" else [*asked, *answer_fields(clean(row["response"])[:WINDOW])]


def stack(rows: Iterable[Sequence[Hashes]]) -> Any:
    """Rows as a sparse matrix; each field has unit weight, as in `Head.score`."""
    from scipy import sparse

    places: list[Hashes] = []
    values, ends = [], [0]
    for row in rows:
        places += row
        values += [np.full(len(f), 1 / np.sqrt(max(1, len(f))), np.float32) for f in row]
        ends.append(ends[-1] + sum(len(f) for f in row))
    parts = (np.concatenate(values), np.concatenate(places).astype(np.int32), np.array(ends))
    matrix = sparse.csr_matrix(parts, shape=(len(ends) - 1, 1 << BITS))
    matrix.sum_duplicates()
    return matrix


def weigh(head: str, rows: Sequence[Row], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if head == "request":
        shares = np.bincount(labels, minlength=2) / len(labels)
        return np.asarray(0.5 / shares[labels])
    names = [str(row.get("source", "")) for row in rows]
    keys = ["aux" if name.startswith("aux_") else name for name in names]
    return np.array([SOURCES.get(key, 1.0) for key in keys])


def fit(task: Task, name: str, seed: int, tick: Callable[[], object]) -> Head:
    """The head, its logit scaled on rows that it had not seen (Platt's method)."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
    except ImportError as exc:
        raise MissingExtra("scikit-learn", "train", "training the linear detector") from exc

    def learn(places: Any) -> Any:
        model = LogisticRegression(C=STRENGTH[name], max_iter=300)
        model.fit(task.rows[places], task.labels[places], sample_weight=task.weights[places])
        tick()
        return model

    unseen = np.zeros(len(task.labels))
    splits = min(FOLDS, int(np.bincount(task.labels).min()))
    if splits < 2:
        raise InputError("the data needs at least two rows of each label")
    for train, test in StratifiedKFold(splits, shuffle=True, random_state=seed).split(
        task.rows, task.labels
    ):
        unseen[test] = learn(train).decision_function(task.rows[test])
    platt = LogisticRegression(C=1e6).fit(unseen[:, None], task.labels, sample_weight=task.weights)
    whole = learn(np.arange(len(task.labels)))
    weights = whole.coef_[0].astype(np.float32)
    return Head(
        weights, float(whole.intercept_[0]), float(platt.coef_[0, 0]), float(platt.intercept_[0])
    )


def squeeze(head: Head) -> Head:
    """The head with its weights in eight bits: what is measured is what is written."""
    unit = unit_of(head)
    return replace(head, weights=(np.round(head.weights / unit) * unit).astype(np.float32))


def unit_of(head: Head) -> float:
    return float(np.abs(head.weights).max()) / 127 or 1.0


def align(heads: Mapping[str, Head], held: Sequence[Row], words: Mapping[str, float]) -> Head:
    """The request head, rescaled so that a word's threshold has one meaning on both sides.

    Its logits at the false-alarm shares of `low` and `high` are moved onto those thresholds.
    """
    found, labels = scores(LinearDetector(NAME, {}, heads), held, "request")
    ends = alarms(found, labels)
    here = [logit(ends[word]) for word in ("low", "high")]
    there = [logit(words[word]) for word in ("low", "high")]
    slope = (there[0] - there[1]) / max(1e-3, here[0] - here[1])
    head = heads["request"]
    return replace(head, scale=head.scale * slope, shift=slope * (head.shift - here[1]) + there[1])


def logit(share: float) -> float:
    kept = min(max(share, 1e-12), 1 - 1e-12)
    return float(np.log(kept / (1 - kept)))


# -- writing ------------------------------------------------------------------


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(heads: Mapping[str, Head]) -> bytes:
    """The weights as an .npz in eight bits; fixed dates make equal weights equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, head in heads.items():
            unit = unit_of(head)
            stored = {
                "weights": np.round(head.weights / unit).astype(np.int8),
                "unit": np.float64(unit),
                "scalars": np.array([head.bias, head.scale, head.shift]),
            }
            for part, array in stored.items():
                piece = io.BytesIO()
                np.save(piece, np.asarray(array))
                entry = zipfile.ZipInfo(f"{name}_{part}.npy", (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, piece.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write_bundle(out: Path, heads: Mapping[str, Head], result: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = pack(heads)
    manifest = Manifest(
        name=NAME,
        version="1",
        kind="linear",
        description="Hashed n-grams of request and answer; the fast first gate.",
        license="Apache-2.0",
        thresholds=result["thresholds"],
        files={"weights.npz": digest(weights)},
    )
    (out / "weights.npz").write_bytes(weights)
    text = yaml.safe_dump(manifest.model_dump(), sort_keys=False)
    (out / "detector.yaml").write_text(text, encoding="utf-8")
    (out / "CARD.md").write_text(describe(NAME, result), encoding="utf-8")
    (out / "eval.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
