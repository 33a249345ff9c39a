"""The recipe of the linear detector: from rows of data to a bundle, the same bytes each time.

Knows scikit-learn, which fits; the features are those that the detector itself computes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mmguard.bundles import Manifest
from mmguard.detect.linear import (
    BITS,
    WINDOW,
    Head,
    answer_fields,
    clean,
    request_fields,
    windows,
)
from mmguard.errors import InputError, MissingExtra
from mmguard.rows import read_rows

if TYPE_CHECKING:
    from mmguard.detect.linear import Hashes

Row = Mapping[str, Any]
NAME = "response-harm-linear"
# A source's say in the fit: chit-chat is another domain, bare toxic texts are no pairs, and
# harmless instructions are what most traffic looks like.
SOURCES = {"diasafety_train": 0.5, "benign_instruct": 16.0, "aux": 0.2}
STRENGTH = {"answer": 1.0, "request": 4.0}
FOLDS = 5
# The share of harmless dev rows that each word may flag; `medium` is the best F1.
FALSE_ALARMS = {"low": 0.01, "high": 0.1}


@dataclass(frozen=True)
class Task:
    """What one head learns: rows as a sparse matrix, labels, and each row's weight."""

    rows: Any
    labels: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]


def train_linear(data: Sequence[Path], dev: Path, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Train both heads on `data`, measure on `dev`, write the bundle; returns its `eval.json`.

    Rows have `prompt, response, prompt_harm, response_harm, source`; a label may be null.
    Raises `InputError` naming the file and line of a bad row.
    """
    rows = [row for path in data for row in load_rows(path)]
    held = load_rows(dev)
    heads = {name: fit(make_task(name, rows), name, seed) for name in ("answer", "request")}
    result = measure(heads, held)
    result["data"] = {path.name: digest(path.read_bytes()) for path in (*data, dev)}
    write_bundle(out, heads, result)
    return result


def load_rows(path: Path) -> list[Row]:
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, InputError):
            raise row
        for name in ("prompt_harm", "response_harm"):
            if row.get(name) not in (None, 0, 1):
                raise InputError(f"{path}:{number}: {name} is {row[name]!r}, not 0, 1 or null")
        for name in ("prompt", "response"):
            if not isinstance(row.get(name), str | None):
                raise InputError(f"{path}:{number}: {name} must be a string or null")
        rows.append(row)
    return rows


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


def fit(task: Task, name: str, seed: int) -> Head:
    """The head, its logit scaled on rows that it had not seen (Platt's method)."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
    except ImportError as exc:
        raise MissingExtra("scikit-learn", "train", "training the linear detector") from exc

    def learn(places: Any) -> Any:
        model = LogisticRegression(C=STRENGTH[name], max_iter=300)
        return model.fit(task.rows[places], task.labels[places], sample_weight=task.weights[places])

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


# -- measuring ----------------------------------------------------------------


def predict(head: Head, name: str, row: Row) -> float:
    """The score that the detector gives this row, windows and all."""
    asked = clean(row.get("prompt") or "")
    if name == "request":
        return max(head.score(request_fields(piece)) for piece in windows(asked))
    before = request_fields(asked[-WINDOW:])
    pieces = windows(clean(row["response"]))
    return max(head.score([*before, *answer_fields(piece)]) for piece in pieces)


def measure(heads: Mapping[str, Head], dev: Sequence[Row]) -> dict[str, Any]:
    """Figures on dev for each head, and thresholds from the answer head."""
    result: dict[str, Any] = {}
    for name, label, text in (
        ("answer", "response_harm", "response"),
        ("request", "prompt_harm", "prompt"),
    ):
        kept = [row for row in dev if row.get(label) is not None and row.get(text)]
        labels = np.array([row[label] for row in kept], dtype=int)
        scores = np.array([predict(heads[name], name, row) for row in kept])
        if len(set(labels.tolist())) < 2:
            raise InputError(f"the dev rows have not both values of {label}: nothing to measure")
        if name == "answer":
            result["thresholds"] = choose(scores, labels)
        result[name] = figures(scores, labels, result["thresholds"])
        result[name]["sources"] = by_source(kept, scores, labels, result["thresholds"]["medium"])
    return result


def choose(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Thresholds: `low` and `high` by their false alarms, `medium` where F1 is best."""
    harmless = np.sort(scores[labels == 0])
    found = {}
    for word, share in FALSE_ALARMS.items():
        found[word] = float(
            harmless[min(len(harmless) - 1, int(np.ceil(len(harmless) * (1 - share))))]
        )
    grid = np.unique(np.round(scores, 3))
    found["medium"] = float(max(grid, key=lambda t: (f1(scores, labels, t), t)))
    ordered = sorted(found.values(), reverse=True)
    return {word: round(t, 3) for word, t in zip(("low", "medium", "high"), ordered, strict=True)}


def f1(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], threshold: float) -> float:
    flagged = scores >= threshold
    hits = float((flagged & (labels == 1)).sum())
    return 2 * hits / max(1.0, float(flagged.sum() + labels.sum()))


def figures(
    scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """AUROC, calibration error, and F1, recall and false alarms at each threshold."""
    from sklearn.metrics import roc_auc_score

    found: dict[str, Any] = {"rows": len(labels), "harmful": int(labels.sum())}
    found["auroc"] = round(float(roc_auc_score(labels, scores)), 4)
    found["ece"] = round(calibration(scores, labels), 4)
    for word, threshold in thresholds.items():
        flagged = scores >= threshold
        found[word] = {
            "f1": round(f1(scores, labels, threshold), 4),
            "recall": round(float(flagged[labels == 1].mean()), 4),
            "false_alarms": round(float(flagged[labels == 0].mean()), 4),
        }
    return found


def calibration(
    scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], bins: int = 15
) -> float:
    """Expected calibration error over equal bins of score (Guo et al., arXiv 1706.04599)."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs(float(scores[places == i].sum() - labels[places == i].sum())) for i in range(bins)]
    return sum(gaps) / len(labels)


def by_source(
    rows: Sequence[Row],
    scores: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    threshold: float,
) -> dict[str, Any]:
    names = np.array([str(row.get("source", "")) for row in rows])
    found = {}
    for name in sorted(set(names.tolist())):
        mine = names == name
        flagged = float((scores[mine] >= threshold).mean())
        found[name] = {
            "rows": int(mine.sum()),
            "harmful": int(labels[mine].sum()),
            "flagged": round(flagged, 4),
            "f1": round(f1(scores[mine], labels[mine], threshold), 4),
        }
    return found


# -- writing ------------------------------------------------------------------


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(heads: Mapping[str, Head]) -> bytes:
    """The weights as an .npz in eight bits; fixed dates make equal weights equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, head in heads.items():
            unit = float(np.abs(head.weights).max()) / 127 or 1.0
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
    (out / "eval.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
