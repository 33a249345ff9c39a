"""Which policy a request is under, told beforehand and seen in the answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from mmguard.cli import app as command
from mmguard.errors import InputError, UnknownName
from mmguard.server.app import make_app, paths
from mmguard.server.attach import choose
from mmguard.server.settings import Settings, load_settings
from tests.upstream import app, completion, write_policy

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
KEYS = {
    "kids": {"key": "a-secret-of-kids", "policy": "strict"},
    "team": {"key": "a-secret-of-team"},
    "lab": {"key": "a-secret-of-labs"},
}
RULES = [
    {"policy": "ecso", "keys": "team", "models": "gpt-4*"},
    {"policy": "audit", "routes": ["/v1/mess*"], "models": ["gpt-*", "o?"]},
    {"policy": "off", "keys": ["lab"]},
]
SETTINGS = {"upstream": "http://up/v1", "keys": KEYS, "attach": RULES}

CASES = [
    ("kids", "gpt-4o", MESSAGES, "strict"),
    ("team", "gpt-4o", MESSAGES, "ecso"),
    ("team", "GPT-4o", CHAT, "ecso"),
    ("team", "gpt-5", MESSAGES, "audit"),
    ("team", "gpt-5", CHAT, "balanced"),
    ("team", "o1", MESSAGES, "audit"),
    ("team", "o10", MESSAGES, "balanced"),
    ("lab", "gpt-4o", CHAT, "off"),
    ("lab", "gpt-4o", MESSAGES, "audit"),
    ("team", "", CHAT, "balanced"),
]


@pytest.mark.parametrize(("key", "model", "route", "policy"), CASES)
def test_the_first_rule_that_fits_decides(key: str, model: str, route: str, policy: str) -> None:
    assert choose(Settings.model_validate(SETTINGS), key, model, route).policy == policy


@given(st.sampled_from([*KEYS]), st.text(max_size=6), st.sampled_from([CHAT, MESSAGES]))
def test_no_model_or_route_changes_the_policy_of_a_key_that_has_one(
    key: str, model: str, route: str
) -> None:
    found = choose(Settings.model_validate(SETTINGS), key, model, route)
    assert found.policy == "strict" or key != "kids"
    assert found.policy in Settings.model_validate(SETTINGS).policies


BAD: list[tuple[list[Any], str]] = [
    ([{"policy": "off"}], r"attach\.0: fits every request"),
    ([{"policy": "off", "keys": ["tem"]}], r"attach\.0\.keys: 'tem' is the name of no key"),
    ([{"policy": "off", "keys": ["kids"]}], r"attach\.0\.keys: 'kids' has a policy of its own"),
    ([{"policy": "off", "model": "x"}], r"attach\.0\.model: Extra inputs"),
    ([{"keys": ["lab"]}], r"attach\.0\.policy: Field required"),
]


@pytest.mark.parametrize(("rules", "told"), BAD)
def test_rules_that_make_no_sense_are_errors(rules: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "side.yaml"
    path.write_text(json.dumps({**SETTINGS, "attach": rules}))
    with pytest.raises(InputError, match=told):
        load_settings(path, {}, {})


def test_routes_and_policies_that_are_not_there_are_errors_at_the_start() -> None:
    rules: list[Any] = [{"policy": "off", "routes": ["/v1/massages"]}]
    known = {"upstream": "http://up/v1", "policy": "off"}
    with pytest.raises(InputError, match=r"nothing is served at '/v1/massages'"):
        make_app(Settings.model_validate({**known, "attach": rules}))
    rules = [{"policy": "stricct", "models": ["x"]}]
    with pytest.raises(UnknownName, match="did you mean 'strict'"):
        make_app(Settings.model_validate({**known, "attach": rules}))


def test_the_known_routes_are_those_that_are_served() -> None:
    served = make_app(Settings(upstream="http://up/v1", policy="off"))
    assert sorted(paths()) == sorted(served.state.sidecar.posts)


# -- seen from outside ----------------------------------------------------------


def attached(folder: Path) -> Any:
    """A sidecar whose default blocks, with a rule under which all passes."""
    rules = [{"policy": "off", "models": ["free*"]}]

    def upstream(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=completion({"content": "some BAD words"}))

    return app(upstream, write_policy(folder), attach=rules)


BODIES: dict[str, Any] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/moderations": {"input": "hello"},
    "/beta/litellm_basic_guardrail_api": {"input_type": "request", "texts": ["hello"]},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("model", ["free-1", "other"])
def test_the_answer_says_which_policy_it_was_under(path: str, model: str, tmp_path: Path) -> None:
    sidecar = attached(tmp_path)

    async def play() -> httpx.Response:
        transport = httpx.ASGITransport(sidecar)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            return await caller.post(path, json={"model": model, **BODIES[path]})

    answer = asyncio.run(play())
    name = "off" if model == "free-1" else "policy"
    assert answer.headers["x-mmguard-policy"].startswith(f"{name}@")
    if path == CHAT:
        assert ("BAD" in answer.text) == (name == "off")


@pytest.mark.parametrize("body", [b"{", b"{}"])
def test_failures_say_it_too(body: bytes, tmp_path: Path) -> None:
    sidecar = attached(tmp_path)

    async def play() -> httpx.Response:
        transport = httpx.ASGITransport(sidecar)
        async with httpx.AsyncClient(transport=transport, base_url="http://side") as caller:
            return await caller.post(CHAT, content=body)

    answer = asyncio.run(play())
    assert answer.status_code == 400
    assert answer.headers["x-mmguard-policy"].startswith("policy@")


def test_attached_policies_are_read_again_all_or_none(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("extends: 'off'\n")
    rules = [{"policy": str(path), "models": ["x"]}]
    settings = {"upstream": "http://up/v1", "policy": "off", "attach": rules}
    sidecar = make_app(Settings.model_validate(settings)).state.sidecar
    first = sidecar.policies
    path.write_text("output: nonsense\n")
    assert not sidecar.reload()
    assert sidecar.policies is first
    path.write_text("extends: 'off'\ndescription: new\n")
    assert sidecar.reload()
    assert sidecar.policies[str(path)].description == "new"


# -- told beforehand ------------------------------------------------------------


def run(folder: Path, *words: str) -> Any:
    path = folder / "side.yaml"
    path.write_text(json.dumps(SETTINGS))
    return CliRunner().invoke(command, ["policies", "explain", "--config", str(path), *words])


def test_the_command_tells_which_and_why(tmp_path: Path) -> None:
    done = run(tmp_path, "--key", "team", "--model", "gpt-5", "--route", MESSAGES)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0].startswith("audit@")
    assert lines[0].endswith("attach[1] fits (models: gpt-*, o?; routes: /v1/mess*)")
    assert lines[1:] == [
        "  not keys.team: no policy of its own",
        "  not attach[0] (ecso): model 'gpt-5' is not gpt-4*",
    ]


def test_the_command_tells_it_to_programs(tmp_path: Path) -> None:
    told = json.loads(run(tmp_path, "--key", "kids", "--json").output)
    assert (told["policy"], told["missed"]) == ("strict", [])
    assert told["tag"].startswith("strict@")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--key", "kid"], "did you mean 'kids'"),
        ([], "name one by --key"),
        (["--key", "kids", "--route", "/v1/chat"], "unknown route"),
    ],
)
def test_the_command_knows_what_is_not_there(words: list[str], told: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert done.exit_code != 0
    assert told in str(done.exception)
