"""`mmguard serve`: settings from everywhere, and a model of this process behind it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmguard.errors import InputError, ModelError
from mmguard.models.scripted import ScriptedModel
from mmguard.server.app import make_app
from mmguard.server.local import ModelTransport
from mmguard.server.settings import Key, Settings, load_settings
from mmguard.server.sidecar import Sidecar
from mmguard.types import AnyRequest
from tests.upstream import detector, write_policy
from tests.world import BAD, words

ASK = {"model": "m", "messages": [{"role": "user", "content": "what is this?"}]}


def ask(inner: ScriptedModel, policy: Path, **body: Any) -> httpx.Response:
    app = make_app(
        Settings(model="mine", policy=str(policy)),
        {"harm": detector()},
        atransport=ModelTransport(inner),
    )

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://side/v1") as caller:
            if not body:
                return await caller.get("models")
            return await caller.post("chat/completions", json=body)

    return asyncio.run(call())


def test_a_model_of_this_process_answers(tmp_path: Path) -> None:
    model = ScriptedModel(lambda request: "a red square")
    answer = ask(model, write_policy(tmp_path), **ASK, n=2, max_tokens=5).json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["a red square"] * 2
    assert answer["usage"]["completion_tokens"] == 6
    assert dict(model.seen[0].options) == {"max_tokens": 5}
    assert ask(model, write_policy(tmp_path)).json()["data"][0]["id"] == "scripted"


def test_a_model_of_this_process_streams(tmp_path: Path) -> None:
    model = ScriptedModel(lambda request: "a red square on a table")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = ask(model, write_policy(tmp_path), **ASK, **options)
    frames = [json.loads(f[6:]) for f in answer.text.split("\n\n") if f and "DONE" not in f]
    words_ = [c["delta"].get("content", "") for f in frames for c in f["choices"]]
    assert "".join(words_) == "a red square on a table"
    assert frames[-1]["usage"]["completion_tokens"] == 6


def test_a_model_of_this_process_is_guarded(tmp_path: Path) -> None:
    def script(request: AnyRequest) -> str:
        return "mended" if "anew" in words(request) else BAD

    policy = write_policy(tmp_path, repair=["detoxify"])
    for stream in (False, True):
        answer = ask(ScriptedModel(script), policy, **ASK, stream=stream)
        assert BAD not in answer.text
        assert "mended" in answer.text


def test_it_chats_and_nothing_else(tmp_path: Path) -> None:
    model = ScriptedModel(lambda request: "a red square")
    settings = Settings(model="mine", policy=str(write_policy(tmp_path)))
    app = make_app(settings, {"harm": detector()}, atransport=ModelTransport(model))

    async def call(path: str, body: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://side/v1") as caller:
            return await caller.post(path, json=body)

    for path, body in (("completions", {"prompt": "x"}), ("messages", ASK)):
        answer = asyncio.run(call(path, body))
        assert answer.status_code == 404
        assert "chat/completions alone" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_its_failures_have_a_status(stream: bool, tmp_path: Path) -> None:
    def bad(request: AnyRequest) -> str:
        raise InputError("option 'x' means nothing")

    def broken(request: AnyRequest) -> str:
        raise ModelError("out of memory")

    policy = write_policy(tmp_path)
    answer = ask(ScriptedModel(bad), policy, **ASK, stream=stream)
    assert (answer.status_code, "option 'x'" in answer.text) == (400, True)
    assert ask(ScriptedModel(broken), policy, **ASK, stream=stream).status_code == 502


# -- settings -----------------------------------------------------------------


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "side.yaml"
    path.write_text("upstream: http://file/v1\nport: 1\ntimeout: 5\n")
    environment = {"MMGUARD_PORT": "2", "MMGUARD_TIMEOUT": "6", "MMGUARD_DEBUG": "1"}
    found = load_settings(path, {"port": 3, "host": None}, environment)
    assert (found.upstream, found.port, found.timeout) == ("http://file/v1", 3, 6)


BAD_SETTINGS = [
    ({}, {}, "name an upstream"),
    ({"upstream": "http://x/v1", "model": "embedded"}, {}, "or else a model"),
    ({"upstream": "http://x/v1"}, {"MMGUARD_PORT": "many"}, "port.*the environment"),
    ({"upstream": "http://x/v1", "port": -1}, {}, "port.*the flags"),
]


@pytest.mark.parametrize(("flags", "environment", "told"), BAD_SETTINGS)
def test_bad_settings_say_where_they_came_from(flags: Any, environment: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_settings(None, flags, environment)


@pytest.mark.parametrize("content", ["- a\n", "a: [\n", None])
def test_bad_files_are_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "side.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match=r"side\.yaml"):
        load_settings(path, {}, {})


def test_secrets_are_not_shown() -> None:
    keys = {"a": Key(key="very-secret")}
    shown = repr(Settings(upstream="http://x/v1", upstream_key="also-secret", keys=keys))
    assert "secret" not in shown


def test_the_command_tells_what_is_missing() -> None:
    run = [sys.executable, "-m", "mmguard", "serve"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "name an upstream" in done.stderr


# -- new policies -------------------------------------------------------------


def test_policies_are_read_again_all_or_none(tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    settings = Settings(upstream="http://x/v1", policy=str(path))
    sidecar = Sidecar(settings, {"harm": detector()})
    first = sidecar.policies[str(path)]
    path.write_text("output: nonsense\n")
    assert not sidecar.reload()
    assert sidecar.policies == {str(path): first}
    write_policy(tmp_path, refusals={"default": "No."})
    assert sidecar.reload()
    assert sidecar.policies[str(path)].refusal("") == "No."


def test_a_new_policy_may_name_a_new_detector(tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    model = ModelTransport(ScriptedModel(lambda request: "a red square"))
    app = make_app(Settings(model="m", policy=str(path)), {"harm": detector()}, atransport=model)
    write_policy(tmp_path, output=[{"detector": "phrases", "action": "block"}])
    assert app.state.sidecar.reload()

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://side/v1") as caller:
            return await caller.post("chat/completions", json=ASK)

    assert asyncio.run(call()).status_code == 200


def test_a_running_sidecar_reads_them_at_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("extends: balanced\n")
    run = [sys.executable, "-m", "mmguard", "serve", "--upstream", "http://127.0.0.1:9/v1"]
    with (
        free_port() as port,
        running([*run, "--policy", str(path), "--port", str(port)]) as process,
    ):
        tags: list[Any] = []
        for text in ("", "on_error: repair\n"):
            path.write_text(f"extends: balanced\n{text}")
            if text:
                process.send_signal(signal.SIGHUP)
            tags.append(wait_for(f"http://127.0.0.1:{port}/readyz", tags))
        process.terminate()
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert tags[0] != tags[1]


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(url: str, old: list[Any]) -> Any:
    """The policies' tags, once they differ from the old ones."""
    for _ in range(300):
        with suppress(httpx.HTTPError):
            tags = httpx.get(url).json()["policies"]
            if tags not in old:
                return tags
        time.sleep(0.1)
    raise TimeoutError(url)
