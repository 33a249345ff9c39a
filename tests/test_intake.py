"""What a request to the sidecar brings: its pictures, fetched once or refused, and its key."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import web
from tests.test_server import ASK, post, says
from tests.upstream import Json, client, completion, write_policy
from tests.world import BAD, png

# -- pictures -----------------------------------------------------------------

URI = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def show(*addresses: Any) -> Json:
    parts: list[Json] = [{"type": "image_url", "image_url": url, "uuid": "u"} for url in addresses]
    parts.append({"type": "text", "text": "?"})
    return {**ASK, "messages": [{"role": "user", "content": parts}]}


def test_pictures_by_url_are_fetched_once_and_inlined(tmp_path: Path) -> None:
    seen: list[Json] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, content=json.dumps(completion({"content": "fine"})))

    with web.serve(lambda path: web.whole(png())) as site:
        rules = {
            "hosts": ["127.0.0.1"],
            "schemes": ["http"],
            "ports": [site.port],
            "private": ["127.0.0.0/8"],
        }
        named = {"url": f"http://127.0.0.1:{site.port}/a.png", "detail": "low"}
        answer = post(handler, write_policy(tmp_path), show(named, URI), pictures=rules)
    assert answer.headers["x-mmguard-images"] == "0/2"
    first, second, words = seen[0]["messages"][0]["content"]
    assert first == {"type": "image_url", "image_url": {"url": URI, "detail": "low"}, "uuid": "u"}
    assert second["image_url"] == URI
    assert words == {"type": "text", "text": "?"}
    assert len(site.heads) == 1


BAD_PICTURES = {
    "a host that nobody named": ("https://example.com/a.png", "not allowed", 400),
    "a path": ("/etc/passwd", "scheme", 400),
    "a file": ("file:///etc/passwd", "scheme", 400),
    "no picture": ("data:image/png;base64,AAAA", "picture", 400),
    "no address": (None, "image_url.url", 400),
    "a number": ({"url": 7}, "image_url.url", 400),
}


@pytest.mark.parametrize(("address", "told", "status"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_bad_pictures_never_go_up(address: Any, told: str, status: int, tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    answer = post(handler, write_policy(tmp_path), show(address))
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


def test_no_more_pictures_than_allowed(tmp_path: Path) -> None:
    answer = post(says({"content": "fine"}), write_policy(tmp_path), show(URI, URI), images=1)
    assert (answer.status_code, "at most 1" in answer.text) == (400, True)


# -- who asks -----------------------------------------------------------------


def test_keys_of_its_own(tmp_path: Path) -> None:
    policy = write_policy(tmp_path)
    keys = {"team": {"key": "team-key-1", "policy": "off"}, "rest": {"key": "rest-key-1"}}

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer up-key"
        return httpx.Response(200, content=json.dumps(completion({"content": BAD})))

    async def call(key: str) -> httpx.Response:
        async with client(handler, policy, keys=keys, upstream_key="up-key") as caller:
            bearer = {"authorization": f"Bearer {key}"}
            return await caller.post("chat/completions", json=ASK, headers=bearer)

    assert asyncio.run(call("wrong-key")).status_code == 401
    assert asyncio.run(call("team-key-1")).json()["choices"][0]["message"]["content"] == BAD
    assert asyncio.run(call("rest-key-1")).json()["choices"][0]["finish_reason"] == "content_filter"
