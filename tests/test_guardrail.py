"""LiteLLM's generic guardrail: requests screened, answers guarded as if a model had said them."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mmguard.media import load_image
from mmguard.models.scripted import ScriptedDetector
from mmguard.server.app import make_app
from mmguard.server.guardrail import PATH
from mmguard.server.settings import Settings
from mmguard.types import Finding, Image, Sample
from tests.upstream import Handler, Json, client, completion, write_policy
from tests.world import BAD, WORDS, png

BASE64 = base64.b64encode(png()).decode()
URI = f"data:image/png;base64,{BASE64}"
LINK = "https://pictures.test/a.png"
ASKS = {"input": [{"detector": "harm", "action": "block"}]}
# What LiteLLM sends beside the texts.
SENT: Json = {
    "litellm_call_id": "call",
    "litellm_trace_id": None,
    "images": None,
    "tools": None,
    "structured_messages": None,
    "request_data": {"user_api_key_alias": "team"},
    "additional_provider_specific_params": {},
    "model": "up",
}


def silent(request: httpx.Request) -> httpx.Response:
    raise AssertionError


def mending(request: httpx.Request) -> httpx.Response:
    asked = json.loads(request.content)
    assert asked["model"] == "up"
    text = "mended" if "anew" in json.dumps(asked["messages"]) else BAD
    return httpx.Response(200, content=json.dumps(completion({"content": text})))


def judge(policy: Path, side: str, upstream: Handler = silent, **body: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        async with client(upstream, policy) as caller:
            sent = {**SENT, "input_type": side, **body}
            return await caller.post(f"http://side{PATH}", json=sent)

    return asyncio.run(call())


def user(*parts: Json) -> list[Json]:
    return [{"role": "user", "content": list(parts)}]


def words(text: str) -> Json:
    return {"type": "text", "text": text}


def picture(url: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url}}


# -- requests -----------------------------------------------------------------


def test_a_request_that_passes(tmp_path: Path) -> None:
    answer = judge(write_policy(tmp_path, **ASKS), "request", texts=["fine", "words"])
    assert answer.json() == {"action": "NONE"}
    assert answer.headers["x-mmguard-decision"] == "pass"


@pytest.mark.parametrize("action", ["block", "repair"])
def test_a_request_that_does_not_is_blocked(action: str, tmp_path: Path) -> None:
    checks = [{"detector": "harm", "action": action}]
    refusals = {"refusals": {"default": "<no>"}, "repair": ["rewrite"]}
    policy = write_policy(tmp_path, input=checks, **refusals)
    answer = judge(policy, "request", texts=["fine", BAD])
    assert answer.json() == {"action": "BLOCKED", "blocked_reason": "<no>"}
    assert answer.headers["x-mmguard-decision"] == "block"


def test_what_an_answer_must_not_say_a_user_may(tmp_path: Path) -> None:
    assert judge(write_policy(tmp_path), "request", texts=[BAD]).json()["action"] == "NONE"


def test_the_conversation_is_read_as_the_flow_reads_it(tmp_path: Path) -> None:
    """And what is listed beside it is read too."""
    policy = write_policy(tmp_path, **ASKS)
    talk = user(words("fine"))
    both: Json = {"structured_messages": talk, "texts": ["fine"]}
    assert judge(policy, "request", **both).json()["action"] == "NONE"
    bad: Json = {"structured_messages": user(words(BAD)), "texts": []}
    assert judge(policy, "request", **bad).json()["action"] == "BLOCKED"
    hidden: Json = {"structured_messages": talk, "texts": ["fine", BAD]}
    assert judge(policy, "request", **hidden).json()["action"] == "BLOCKED"


async def allowing(url: str) -> Image:
    """All links may be fetched."""
    return load_image(URI if url.startswith("https") else url)


def look(policy: Path, side: str, **body: Any) -> tuple[Json, list[Sample]]:
    """The verdict of a detector that flags pictures, and all that it was shown."""
    seen: list[Sample] = []

    def script(sample: Sample) -> Finding:
        seen.append(sample)
        images = len(sample.request.images)
        return Finding("harm", 0.9 if images else 0.1, images=images)

    harm = ScriptedDetector(script, name="harm", thresholds=WORDS)
    side_app = make_app(Settings(upstream="http://up/v1", policy=str(policy)), {"harm": harm})
    side_app.state.sidecar.fetch = allowing

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(side_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            return await caller.post(PATH, json={**SENT, "input_type": side, **body})

    return asyncio.run(call()).json(), seen


LISTED = {
    "a data URI": {"images": [URI]},
    "bare base64": {"images": [BASE64]},
    "in the conversation": {"structured_messages": user(words("fine"), picture(URI))},
    "a link": {"images": [LINK]},
    "a link in the conversation": {"structured_messages": user(words("fine"), picture(LINK))},
    "both": {"structured_messages": user(words("fine"), picture(URI)), "images": [URI]},
}


@pytest.mark.parametrize("body", LISTED.values(), ids=LISTED)
def test_pictures_are_looked_at_once(body: Json, tmp_path: Path) -> None:
    verdict, seen = look(write_policy(tmp_path, **ASKS), "request", texts=["fine"], **body)
    assert verdict["action"] == "BLOCKED"
    assert [len(sample.request.images) for sample in seen] == [1]


LINKS = {
    "listed": {"images": [LINK]},
    "said": {"structured_messages": user(picture(LINK))},
    "short": {"structured_messages": user({"type": "image_url", "image_url": LINK.upper()})},
}


@pytest.mark.parametrize("body", LINKS.values(), ids=LINKS)
def test_of_pictures_by_url_the_policy_decides(body: Json, tmp_path: Path) -> None:
    answer = judge(write_policy(tmp_path, **ASKS), "request", texts=["fine"], **body)
    assert answer.json()["action"] == "BLOCKED"
    lax = write_policy(tmp_path, **ASKS, unreadable="pass")
    assert judge(lax, "request", texts=["fine"], **body).json()["action"] == "NONE"


# -- answers ------------------------------------------------------------------


def test_an_answer_that_passes(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, **ASKS)
    asked = user(words(BAD))
    answer = judge(policy, "response", texts=["fine", "too"], structured_messages=asked)
    assert answer.json() == {"action": "NONE"}


def test_an_answer_that_does_not_is_blocked(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, refusals={"default": "<no>"})
    answer = judge(policy, "response", texts=["fine", f"a {BAD} word"])
    assert answer.json() == {"action": "BLOCKED", "blocked_reason": "<no>"}


def test_an_answer_is_mended_in_its_place(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    answer = judge(policy, "response", mending, texts=["fine", BAD, "too"])
    made = {"action": "GUARDRAIL_INTERVENED", "texts": ["fine", "mended", "too"]}
    assert answer.json() == made
    assert answer.headers["x-mmguard-decision"] == "repair"


@pytest.mark.parametrize("window", [None, 6])
def test_an_answer_is_mended_as_the_whole_that_it_is(window: int | None, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["excise"], stream={"window": window})
    text = f"All is fine here. And so on. It is good. {BAD} words. And the end of it."
    answer = judge(policy, "response", texts=[text])
    assert answer.json()["texts"] == [text.replace(f"{BAD} words. ", "")]


def test_an_answer_that_cannot_be_mended_is_blocked(tmp_path: Path) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500)

    policy = write_policy(tmp_path, repair=["detoxify"])
    answer = judge(policy, "response", down, texts=["fine", BAD])
    assert answer.json()["action"] == "BLOCKED"


def test_an_answer_is_seen_with_its_request(tmp_path: Path) -> None:
    asked = user(words("what is this?"), picture(URI))
    verdict, seen = look(write_policy(tmp_path), "response", texts=["x"], structured_messages=asked)
    assert verdict["action"] == "BLOCKED"
    [sample] = seen
    assert (sample.request.query, sample.reply) == ("what is this?", "x")


CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": f'"{BAD}"'}}]


def test_calls_of_tools_are_blocked_and_never_reworded(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, repair=["detoxify"])
    answer = judge(policy, "response", mending, texts=["fine"], tool_calls=CALLS)
    assert answer.json()["action"] == "BLOCKED"
    fine = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    answer = judge(policy, "response", silent, texts=["fine"], tool_calls=fine)
    assert answer.json()["action"] == "NONE"


def test_of_pictures_that_a_model_made_the_policy_decides(tmp_path: Path) -> None:
    body: Json = {"texts": ["fine"], "images": [URI]}
    assert judge(write_policy(tmp_path), "response", **body).json()["action"] == "BLOCKED"
    lax = write_policy(tmp_path, unreadable="pass")
    assert judge(lax, "response", **body).json()["action"] == "NONE"


def test_an_audit_changes_nothing(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, **ASKS, mode="audit")
    for side in ("request", "response"):
        answer = judge(policy, side, texts=[BAD], tool_calls=CALLS, images=[URI])
        assert answer.json() == {"action": "NONE"}


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from([BAD, "B", f"a {BAD} word", "fine", "x"]), max_size=4), st.booleans()
)
def test_nothing_banned_comes_back(tmp_path: Path, texts: list[str], mends: bool) -> None:
    """An answer goes on as it came, or without a banned word and of the same number of texts."""
    policy = write_policy(tmp_path, repair=["detoxify"] if mends else [])
    made = judge(policy, "response", mending, texts=texts).json()
    assert BAD not in json.dumps(made)
    bad = any(BAD in text for text in texts)
    wanted = ("GUARDRAIL_INTERVENED" if mends else "BLOCKED") if bad else "NONE"
    assert made["action"] == wanted
    assert len(made.get("texts", texts)) == len(texts)


# -- failures -----------------------------------------------------------------


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_failed_detector_is_unavailable(side: str, tmp_path: Path) -> None:
    checks = [{"detector": "broken", "action": "block"}]
    policy = write_policy(tmp_path, input=checks, output=checks)
    answer = judge(policy, side, texts=["fine"])
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"


BAD_BODIES: list[tuple[Json, str]] = [
    ({"input_type": None}, "input_type"),
    ({"texts": "x"}, "texts: give a list"),
    ({"texts": [1]}, "texts: give a list"),
    ({"images": ["/etc/host-name!"]}, "base64"),
    ({"images": [URI[:42]]}, "is no PNG"),
    ({"structured_messages": {"role": "user"}}, "structured_messages: give a list"),
    ({"structured_messages": [{"role": "king"}]}, "use one of"),
    ({"structured_messages": user(picture("/etc/hostname"))}, "data:"),
]


CROWDS: list[Json] = [
    {"images": [URI] * 3},
    {"images": [LINK] * 3},
    {"structured_messages": user(*(picture(f"{LINK}{i}") for i in range(3)))},
    {"structured_messages": user(*[picture(URI)] * 3)},
]


@pytest.mark.parametrize("body", CROWDS)
def test_pictures_are_counted_before_any_is_fetched(body: Json, tmp_path: Path) -> None:
    async def call() -> httpx.Response:
        async with client(silent, write_policy(tmp_path), images=2) as caller:
            sent = {**SENT, "input_type": "request", **body}
            return await caller.post(f"http://side{PATH}", json=sent)

    answer = asyncio.run(call())
    assert answer.status_code == 400
    assert "send at most 2" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("body", "told"), BAD_BODIES)
def test_bad_bodies_are_told_what_to_fix(body: Json, told: str, tmp_path: Path) -> None:
    answer = judge(write_policy(tmp_path), "request", **body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_the_gateway_s_key(tmp_path: Path) -> None:
    async def call(key: str) -> int:
        keys = {"gateway": {"key": "gateway-key"}}
        async with client(silent, write_policy(tmp_path), keys=keys) as caller:
            body, headers = {**SENT, "input_type": "request"}, {"x-api-key": key}
            answer = await caller.post(f"http://side{PATH}", json=body, headers=headers)
            return answer.status_code

    assert asyncio.run(call("gateway-key")) == 200
    assert asyncio.run(call("wrong-key")) == 401
