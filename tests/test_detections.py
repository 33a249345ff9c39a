"""The FMS orchestrator's detector API: which sentences would not pass, and where they stand."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.detections import MOST, SENTENCES
from mmguard.server.settings import Settings
from mmguard.types import Finding, Sample
from tests.upstream import Json, write_policy
from tests.world import BAD, WORDS

PATH = "/api/v1/text/contents"


def read(sample: Sample) -> str:
    return sample.request.text if sample.reply is None else sample.reply


def script(sample: Sample) -> Finding:
    """Harm is where BAD is, and worse in an answer; also in a text that says "a" and "b"."""
    text = read(sample)
    bad = BAD in text or ("part a" in text and "part b" in text)
    score = 0.1 if not bad else 0.8 if sample.reply is None else 0.9
    return Finding("harm", score, categories={"hate": score}, chars=len(text))


def post(policy: Path, body: Json, path: str = PATH, **more: Any) -> httpx.Response:
    harm = ScriptedDetector(script, name="harm", thresholds=WORDS)
    broken = ScriptedDetector(lambda sample: math.nan, name="broken")
    plain = ScriptedDetector(lambda s: 0.7 * (BAD in read(s)), name="plain", thresholds=WORDS)
    known = {"harm": harm, "broken": broken, "plain": plain}
    app = make_app(Settings(upstream="http://up/v1", policy=str(policy), **more), known)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            return await caller.post(path, json=body, headers={"detector-id": "mmguard"})

    return asyncio.run(call())


def detect(policy: Path, *texts: str) -> list[list[Json]]:
    answer = post(policy, {"contents": list(texts), "detector_params": {}})
    assert answer.status_code == 200
    found: list[list[Json]] = answer.json()
    return found


def test_every_field(tmp_path: Path) -> None:
    text = f"All is fine. This is {BAD} indeed. So is this."
    assert detect(write_policy(tmp_path), "fine", text) == [
        [],
        [
            {
                "start": 13,
                "end": 32,
                "text": f"This is {BAD} indeed.",
                "detection": "hate",
                "detection_type": "harm",
                "score": 0.9,
            }
        ],
    ]


def test_places_count_characters(tmp_path: Path) -> None:
    text = f"Gr\u00fc\u00df \U0001f600 dich. {BAD} hier."
    [[found]] = detect(write_policy(tmp_path), text)
    assert text[found["start"] : found["end"]] == found["text"] == f"{BAD} hier."


def test_harm_that_no_sentence_has_alone_is_the_whole_text_s(tmp_path: Path) -> None:
    text = " Take part a now. Then part b. "
    [[found]] = detect(write_policy(tmp_path), text)
    assert (found["start"], found["end"], found["text"]) == (0, len(text), text)


def test_every_detector_has_its_say(tmp_path: Path) -> None:
    checks = [{"detector": name, "action": "block"} for name in ("harm", "plain")]
    [found] = detect(write_policy(tmp_path, output=checks), f"Fine. {BAD} words.")
    assert [(one["detection"], one["detection_type"]) for one in found] == [
        ("hate", "harm"),
        ("unsafe", "plain"),
    ]
    assert {one["start"] for one in found} == {6}


def test_a_very_long_text_is_told_whole(tmp_path: Path) -> None:
    text = f"{BAD}. " * (SENTENCES + 1)
    [[found]] = detect(write_policy(tmp_path), text)
    assert (found["start"], found["end"]) == (0, len(text))


TEXTS = st.lists(
    st.sampled_from([BAD, "B", "x.", "\n", "- ", "# ", "Fine. ", "1. ", "*"]), max_size=9
).map("".join)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_all_harm_has_a_place(tmp_path: Path, texts: list[str]) -> None:
    for text, found in zip(texts, detect(write_policy(tmp_path), *texts), strict=True):
        assert bool(found) == (BAD in text)
        assert all(one["text"] == text[one["start"] : one["end"]] for one in found)


@pytest.mark.parametrize("on_error", ["block", "pass"])
def test_a_failed_detector_is_unavailable(on_error: str, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "broken"}], on_error=on_error)
    policy.write_text(policy.read_text().replace('"repair": []', '"repair": ["rewrite"]'))
    answer = post(policy, {"contents": ["fine"]})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json() == {"code": 503, "message": "the guard cannot check this answer now"}


BAD_BODIES: list[tuple[Json, str]] = [
    ({}, "give a list of texts"),
    ({"contents": "x"}, "give a list of texts"),
    ({"contents": [1]}, "give a list of texts"),
    ({"contents": []}, f"1 to {MOST} texts"),
    ({"contents": ["x"] * (MOST + 1)}, f"1 to {MOST} texts"),
    ({"contents": ["x"], "detector_params": {"threshold": 0.1}}, "leave it out"),
]


@pytest.mark.parametrize(("body", "told"), BAD_BODIES)
def test_bad_bodies_are_told_what_to_fix(body: Json, told: str, tmp_path: Path) -> None:
    answer = post(write_policy(tmp_path), body)
    assert answer.status_code == answer.json()["code"] == 400
    assert told in answer.json()["message"]


def test_keys_are_asked_for(tmp_path: Path) -> None:
    keys = {"team": {"key": "team-key-1"}}
    answer = post(write_policy(tmp_path), {"contents": ["x"]}, keys=keys)
    assert answer.status_code == answer.json()["code"] == 401


def test_its_health() -> None:
    app = make_app(Settings(upstream="http://up/v1", policy="off"))

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            return await caller.get("/health")

    assert asyncio.run(call()).json() == {"status": "ok"}
