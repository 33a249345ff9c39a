"""OpenAI's moderation endpoint, in its recorded shape, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmguard.bundles import load_detector
from mmguard.detect.moderation import ModerationDetector
from mmguard.errors import BundleError, DetectorError, ModelError
from mmguard.types import Image, Sample
from tests.server import Answer, serve
from tests.tiny_guards import write_bundle
from tests.world import PICTURE, ask, png

KEY = "MODERATION_KEY"
NAMES = [
    "harassment", "harassment/threatening", "sexual", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm/intent", "self-harm/instructions", "self-harm",
    "sexual/minors", "violence", "violence/graphic",
]  # fmt: skip
SAMPLE = Sample(ask("What is it?", PICTURE), "A square.")


def result(**scores: Any) -> dict[str, Any]:
    """What the endpoint answers to one input."""
    given = {**dict.fromkeys(NAMES, 1e-6), **{k.replace("__", "/"): v for k, v in scores.items()}}
    flags = {name: isinstance(score, float) and score > 0.5 for name, score in given.items()}
    one = {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": given,
        "category_applied_input_types": {name: ["text"] for name in given},
    }
    return {"id": "modr-1", "model": "omni-moderation-latest", "results": [one]}


@contextmanager
def moderated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, **settings: Any
) -> Iterator[ModerationDetector]:
    monkeypatch.setenv(KEY, "k")
    with serve(answer) as url:
        given = {"url": url, "key_env": KEY, **settings}
        detector = load_detector(write_bundle(folder, "moderation", **given))
        assert isinstance(detector, ModerationDetector)
        with closing(detector):
            yield detector


def test_the_highest_score_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = result(hate=0.2, violence=0.7, sexual__minors=0.1, violence__graphic=0.9, new=0.05)
    with moderated(tmp_path, monkeypatch, lambda sent: body) as detector:
        [finding] = detector.score([SAMPLE])
    assert (finding.score, finding.label, finding.category) == (0.9, "harmful", "violent_crimes")
    assert finding.categories["hate"] == 0.2
    assert finding.categories["child_exploitation"] == 0.1
    assert finding.categories["new"] == 0.05
    assert (finding.images, finding.chars) == (0, len("A square."))
    assert detector.thresholds["medium"] == 0.5


SENT: dict[str, tuple[dict[str, Any], Sample, list[list[str]], int]] = {
    "answer": ({}, SAMPLE, [["A square."]], 0),
    "pair": ({"input": "pair"}, SAMPLE, [["What is it?\nA square.", "image"]], 1),
    "request": ({}, Sample(SAMPLE.request), [["What is it?", "image"]], 1),
    "blind": ({"images": False}, Sample(SAMPLE.request), [["What is it?"]], 0),
    "two": (
        {},
        Sample(ask("Which?", PICTURE, Image(png(3, 3), extra={"detail": "low"}))),
        [["Which?", "image"], ["image"]],
        2,
    ),
    "picture": ({}, Sample(ask("", PICTURE)), [["image"]], 1),
}


@pytest.mark.parametrize(("settings", "sample", "inputs", "images"), SENT.values(), ids=SENT)
def test_what_is_sent(
    settings: dict[str, Any],
    sample: Sample,
    inputs: list[list[str]],
    images: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []

    def answer(sent: dict[str, Any]) -> dict[str, Any]:
        seen.append(sent)
        return result()

    with moderated(tmp_path, monkeypatch, answer, **settings) as detector:
        assert detector.score([sample])[0].images == images
    assert [[part.get("text", "image") for part in sent["input"]] for sent in seen] == inputs
    assert {sent["path"] for sent in seen} == {"/v1/moderations"}
    assert {sent["model"] for sent in seen} == {"omni-moderation-latest"}
    pictures = [p for sent in seen for p in sent["input"] if p["type"] == "image_url"]
    assert all(list(p["image_url"]) == ["url"] for p in pictures)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "refused": ({"status": 429, "error": "slow down"}, "answered 429"),
    "broken": ({"status": 500, "error": "sorry"}, "answered 500"),
    "nothing": ({"results": []}, "no results"),
    "no scores": ({"results": [{"flagged": False}]}, "no category_scores"),
    "null": (result(hate=None), "'hate' None"),
    "nan": (result(hate=float("nan")), "'hate' nan"),
    "large": (result(hate=42.0), "'hate' 42.0"),
}


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=BAD)
def test_failures(
    body: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        moderated(tmp_path, monkeypatch, lambda sent: dict(body)) as detector,
        pytest.raises((ModelError, DetectorError), match=message),
    ):
        detector.score([SAMPLE, SAMPLE])


def test_a_row_that_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(sent: dict[str, Any]) -> dict[str, Any]:
        said = sent["input"][0]["text"]
        return {"status": 400} if said == "7" else result(hate=int(said) / 100)

    rows = [Sample(ask("?"), str(i)) for i in range(20)]
    with moderated(tmp_path, monkeypatch, answer) as detector:
        findings = detector.score(rows)
    assert [i for i, f in enumerate(findings) if f.error] == [7]
    assert [f.categories["hate"] for f in findings if not f.error][8:] == [
        i / 100 for i in range(9, 20)
    ]


def test_dead_server_and_missing_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "k")
    settings = {"url": "http://127.0.0.1:9/v1", "key_env": KEY}
    detector = load_detector(write_bundle(tmp_path, "moderation", **settings))
    with pytest.raises(ModelError, match="cannot be reached"):
        detector.score([SAMPLE])
    monkeypatch.delenv(KEY)
    with pytest.raises(BundleError, match="MODERATION_KEY"):
        load_detector(write_bundle(tmp_path, "moderation", **settings))
