"""Moderations: what the policy's own detectors say, under OpenAI's names, and never a guess."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mmguard.detect.hazards import HAZARDS
from mmguard.detect.moderation import CATEGORIES
from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.moderations import MOST, NAMES
from mmguard.server.settings import Settings
from mmguard.types import Finding, Sample
from tests.loopback import served
from tests.upstream import write_policy
from tests.world import BAD, WORDS, png

PICTURE = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64," + base64.b64encode(png()).decode()},
}
WORD = {"type": "text", "text": "words"}


def script(sample: Sample) -> Finding:
    """Hate at .9 where a text says BAD, crimes at .6 where a request does, else .1 of each."""
    text = sample.reply if sample.reply is not None else sample.request.text
    hate, crimes = (0.9, 0.6 if sample.reply is None else 0.1) if BAD in text else (0.1, 0.1)
    categories = {"hate": hate, "violent_crimes": crimes, "vendor": 0.2}
    return Finding("harm", max(hate, crimes), categories=categories, chars=len(text))


def app(policy: Path, **detectors: ScriptedDetector) -> Any:
    known = {"harm": ScriptedDetector(script, name="harm", thresholds=WORDS), **detectors}
    return make_app(Settings(upstream="http://up/v1", policy=str(policy)), known)


def moderate(policy: Path, given: Any, **detectors: ScriptedDetector) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app(policy, **detectors))
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            return await caller.post("/v1/moderations", json={"input": given})

    return asyncio.run(call())


def eyes(score: float = 0.1) -> ScriptedDetector:
    """A detector that sees pictures."""
    found = Finding("eyes", score, categories={"sexual_content": score}, images=1)
    return ScriptedDetector(lambda sample: found, name="eyes", thresholds=WORDS)


# -- fields -------------------------------------------------------------------


def test_a_harmless_text(tmp_path: Path) -> None:
    answer = moderate(write_policy(tmp_path), "fine")
    body = answer.json()
    assert body["id"].startswith("modr-")
    assert body["model"] == answer.headers["x-mmguard-policy"]
    [result] = body["results"]
    assert result["flagged"] is False
    assert not any(result["categories"].values())
    assert set(result["categories"]) == {*HAZARDS.values(), *NAMES, "vendor", "unsafe"}
    assert result["category_scores"]["hate"] == 0.1
    assert result["category_scores"]["elections"] == 0
    assert result["category_applied_input_types"]["hate"] == ["text"]
    assert result["category_applied_input_types"]["elections"] == []


def test_a_harmful_text(tmp_path: Path) -> None:
    [result] = moderate(write_policy(tmp_path), f"so {BAD}").json()["results"]
    assert result["flagged"] is True
    flagged = {name for name, value in result["categories"].items() if value}
    crimes = {"violent_crimes", "violence", "illicit", "illicit/violent"}
    assert flagged == {"hate", "unsafe", *crimes}
    scores = result["category_scores"]
    assert scores["unsafe"] == scores["hate"] == 0.9
    assert {scores[name] for name in crimes} == {0.6}
    assert scores["sexual"] == scores["hate/threatening"] == 0


def test_all_of_openai_s_names_are_there_and_cover_known_hazards() -> None:
    assert set(CATEGORIES) < set(NAMES)
    assert {hazard for covered in NAMES.values() for hazard in covered} < set(HAZARDS.values())


def test_one_result_a_string_and_one_for_parts(tmp_path: Path) -> None:
    policy = write_policy(tmp_path)
    many = moderate(policy, ["fine", BAD, "fine"]).json()["results"]
    assert [result["flagged"] for result in many] == [False, True, False]
    [one] = moderate(policy, [WORD, {"type": "text", "text": BAD}]).json()["results"]
    assert one["flagged"]


# -- verdicts -----------------------------------------------------------------


@pytest.mark.parametrize("side", ["request", "answer"])
def test_a_text_is_harmful_as_a_request_or_as_an_answer(side: str, tmp_path: Path) -> None:
    def half(sample: Sample) -> float:
        return 0.9 if (sample.reply is None) == (side == "request") else 0.1

    detector = ScriptedDetector(half, name="half", thresholds=WORDS)
    policy = write_policy(tmp_path, output=[{"detector": "half", "action": "block"}])
    [result] = moderate(policy, "text", half=detector).json()["results"]
    assert result["flagged"]
    assert result["categories"]["unsafe"]


def test_a_request_s_own_check_takes_the_place_of_the_answers(tmp_path: Path) -> None:
    """What the policy lets a user ask is not flagged because no model may say it."""

    def asked(sample: Sample) -> float:
        return 0.6 if sample.reply is None else 0.1

    detector = ScriptedDetector(asked, name="half", thresholds=WORDS)
    own = [{"detector": "half", "strictness": "low", "action": "block"}]
    output = [{"detector": "half", "action": "block"}]
    lenient = write_policy(tmp_path, input=own, output=output)
    assert not moderate(lenient, "text", half=detector).json()["results"][0]["flagged"]
    strict = write_policy(tmp_path, output=output)
    assert moderate(strict, "text", half=detector).json()["results"][0]["flagged"]


def test_a_block_hides_no_other_score(tmp_path: Path) -> None:
    first = ScriptedDetector(lambda sample: 0.95, name="first", thresholds=WORDS)
    rules = {"vendor": {"strictness": 0.1, "action": "block"}}
    checks = [
        {"detector": "first", "action": "block"},
        {"detector": "harm", "action": "block", "categories": rules},
    ]
    policy = write_policy(tmp_path, input=checks, output=checks)
    [result] = moderate(policy, BAD, first=first).json()["results"]
    assert result["category_scores"]["unsafe"] == 0.95
    assert result["category_scores"]["hate"] == 0.9
    assert result["categories"]["vendor"]


def test_what_a_policy_only_records_is_not_flagged(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, output=[{"detector": "harm", "action": "pass"}])
    [result] = moderate(policy, BAD).json()["results"]
    assert not result["flagged"]
    assert not any(result["categories"].values())
    assert result["category_scores"]["hate"] == 0.9


def test_an_audit_flags_what_it_would_not_stop(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, mode="audit")
    assert moderate(policy, BAD).json()["results"][0]["flagged"]


# -- pictures -----------------------------------------------------------------


def test_pictures_that_are_seen(tmp_path: Path) -> None:
    checks = [{"detector": name, "action": "block"} for name in ("harm", "eyes")]
    policy = write_policy(tmp_path, output=checks)
    [result] = moderate(policy, [WORD, PICTURE], eyes=eyes(0.9)).json()["results"]
    assert result["flagged"]
    assert result["categories"]["sexual"]
    assert result["category_applied_input_types"]["sexual"] == ["image"]
    assert result["category_applied_input_types"]["hate"] == ["text"]
    assert result["category_applied_input_types"]["unsafe"] == ["text", "image"]
    [alone] = moderate(policy, [PICTURE], eyes=eyes(0.9)).json()["results"]
    assert alone["flagged"]


def test_a_picture_that_nobody_saw_is_never_called_harmless(tmp_path: Path) -> None:
    answer = moderate(write_policy(tmp_path), [WORD, PICTURE])
    assert answer.status_code == 400
    assert "1 of 1 pictures were seen by no detector" in answer.json()["error"]["message"]
    [result] = moderate(write_policy(tmp_path, unreadable="pass"), [WORD, PICTURE]).json()[
        "results"
    ]
    assert result["category_applied_input_types"]["unsafe"] == ["text"]


# -- failures -----------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["block", "pass"])
@pytest.mark.parametrize("given", ["fine", ["fine", BAD]])
def test_a_failed_detector_is_unavailable(on_error: str, given: Any, tmp_path: Path) -> None:
    broken = ScriptedDetector(lambda sample: float("nan"), name="broken", thresholds=WORDS)
    checks = [{"detector": name, "action": "block"} for name in ("harm", "broken")]
    policy = write_policy(tmp_path, output=checks, on_error=on_error)
    answer = moderate(policy, given, broken=broken)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["type"] == "guard_unavailable"


def test_a_policy_without_detectors_says_so(tmp_path: Path) -> None:
    for fields in ({"mode": "off", "output": []}, {"output": [{"detector": "self"}]}):
        policy = write_policy(tmp_path, repair=["rewrite"], **fields)
        answer = moderate(policy, BAD)
        assert answer.status_code == 400
        assert "names no detector" in answer.json()["error"]["message"]


AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
BAD_INPUTS = [
    (None, "give a string, or a list"),
    ([], "give a string, or a list"),
    (["x"] * (MOST + 1), f"1 to {MOST}"),
    ([1], "input[0]"),
    (["x", WORD], "input[0]"),
    ([WORD, AUDIO], "input[1]"),
    ([{"type": "text"}], "input[0].text must be a string"),
    ([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}], "as a data URI"),
    ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "is no PNG"),
]


@pytest.mark.parametrize(("given", "told"), BAD_INPUTS)
def test_bad_inputs_are_told_what_to_fix(given: Any, told: str, tmp_path: Path) -> None:
    answer = moderate(write_policy(tmp_path), given)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_the_official_client(tmp_path: Path) -> None:
    with served(app(write_policy(tmp_path))) as url:
        client = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        made = client.moderations.create(model="omni-moderation-latest", input=["fine", BAD])
        assert [result.flagged for result in made.results] == [False, True]
        harmful = made.results[1]
        assert harmful.categories.hate
        assert harmful.categories.illicit_violent
        assert not harmful.categories.self_harm_intent
        assert harmful.category_scores.violence == 0.6
        assert harmful.category_applied_input_types.hate == ["text"]
        with pytest.raises(openai.BadRequestError, match="give a string"):
            client.moderations.create(input=[])


def test_mmguard_s_own_client_reads_it(tmp_path: Path) -> None:
    """A sidecar may be another's moderation endpoint."""
    from mmguard.detect.moderation import Moderation, ModerationDetector
    from tests.world import ask

    with served(app(write_policy(tmp_path))) as url:
        settings = Moderation(url=url, key_env="")
        detector = ModerationDetector("side", WORDS, settings)
        found = detector.score([Sample(ask("fine")), Sample(ask("x"), BAD)])
        detector.close()
    assert [finding.score for finding in found] == [0.2, 0.9]
    assert found[1].category == "hate"
