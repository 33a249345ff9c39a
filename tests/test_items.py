"""What requests for OpenAI's responses say and show, and what of them nobody can see."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from mmguard.server import items
from mmguard.types import Image
from tests.replies import (
    BLOCK,
    URI,
    call,
    end,
    listen,
    picture,
    post,
    refused,
    response,
    says,
    stream,
    thought,
    well_formed,
    words,
)
from tests.upstream import Json, write_policy
from tests.world import BAD, png

# -- what is read -----------------------------------------------------------


def test_a_request_that_is_blocked_never_goes_up(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    policy = write_policy(tmp_path, **BLOCK, input=[{"detector": "harm", "action": "block"}])
    part = {"type": "input_text", "text": BAD}
    said: list[Json] = [
        {"instructions": BAD},
        {"input": BAD},
        {"input": [{"role": "user", "content": BAD}]},
        {"input": [{"type": "message", "role": "developer", "content": [part]}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": BAD}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [part]}]},
        {"input": [{"type": "shell_call_output", "output": [{"stdout": BAD, "stderr": ""}]}]},
        {"input": [call(f'{{"x": "{BAD}"}}')]},
        {"input": [thought(BAD)]},
        {"input": None, "prompt": {"id": "p", "variables": {"x": BAD}}},
        {"input": [], "prompt": {"id": "p", "variables": {"x": part}}, "previous_response_id": "x"},
    ]
    for body in said:
        answer = post(handler, policy, **{"input": "x", **body}).json()
        assert answer["model"] == "up"
        assert answer["incomplete_details"] == {"reason": "content_filter"}
        _, events = listen(handler, policy, **{"input": "x", **body})
        well_formed(events)
        assert (refused(events), end(events)) == ("<no>", ("incomplete", "content_filter"))


def test_pictures_by_url_go_up_as_what_was_checked() -> None:
    linked = picture("https://pictures.test/a.png")
    shot = {"type": "computer_screenshot", "image_url": "https://pictures.test/a.png"}
    body: Json = {
        "input": [
            {"role": "user", "content": [linked, {"type": "input_text", "text": "x"}]},
            {"type": "function_call_output", "call_id": "1", "output": [dict(linked)]},
            {"type": "computer_call_output", "call_id": "2", "output": shot},
        ],
        "prompt": {"id": "p", "variables": {"shown": dict(linked), "said": "y"}},
    }
    known = {id(part): Image(png()) for part in items.pictures(body)}
    assert len(known) == 4
    request = items.read(body, known)
    assert len(request.images) == 4
    assert request.images[0].extra == {"detail": "low"}
    assert [m.role for m in request.messages] == ["user", "user", "tool", "tool"]
    made = items.enclose(body, known)
    assert "https:" not in json.dumps(made)
    assert made["input"][0]["content"] == [picture(), {"type": "input_text", "text": "x"}]
    assert made["input"][2]["output"] == {**shot, "image_url": URI}
    assert made["prompt"]["variables"]["shown"] == picture()
    again = items.write(request, "up")["input"]
    assert again[1]["content"] == [picture(), {"type": "input_text", "text": "x"}]


def test_a_further_call_keeps_what_shapes_an_answer() -> None:
    body = {"input": "x", "temperature": 0, "max_output_tokens": 4, "tools": [{"type": "x"}]}
    request = items.read({**body, "reasoning": {"effort": "low"}}, {})
    said = [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]
    options = {"max_output_tokens": 16, "temperature": 0, "reasoning": {"effort": "low"}}
    assert items.write(request, "up") == {"model": "up", **options, "store": False, "input": said}


# -- what cannot be seen --------------------------------------------------------

UNSEEN: dict[str, Json] = {
    "file": {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
    "picture": {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
    "item": {"input": [{"type": "vendor", "x": 1}]},
    "tool": {"tools": [{"type": "image_generation"}]},
    "drawn": {"input": [{"type": "image_generation_call", "result": "aGk="}]},
    "plot": {
        "input": [
            {"type": "code_interpreter_call", "outputs": [{"type": "image", "url": "https://x"}]}
        ]
    },
}


@pytest.mark.parametrize("asked", UNSEEN.values(), ids=UNSEEN)
def test_what_nobody_can_read_the_policy_decides(asked: Json, tmp_path: Path) -> None:
    handler = says(response(words("fine")))
    answer = post(handler, write_policy(tmp_path), **asked)
    assert answer.json()["incomplete_details"] == {"reason": "content_filter"}
    answer = post(handler, write_policy(tmp_path, unreadable="pass"), **asked)
    assert answer.json()["status"] == "completed"


DRAWN = {"id": "ig", "type": "image_generation_call", "status": "completed", "result": "aGk="}


def test_a_picture_that_nobody_asked_for_is_no_answer(tmp_path: Path) -> None:
    for body, streamed in ((response(DRAWN), False), (stream(DRAWN), True)):
        answer = post(says(body), write_policy(tmp_path), stream=streamed)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "unreadable")
        open_policy = write_policy(tmp_path, unreadable="pass")
        answer = post(says(body), open_policy, stream=streamed)
        assert "aGk=" in answer.text


def test_what_the_upstream_remembers_goes_on(tmp_path: Path) -> None:
    for asked in (
        {"input": None, "previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"type": "compaction", "encrypted_content": "x"}]},
        {"store": True, "background": False},
    ):
        answer = post(says(response(words("fine"))), write_policy(tmp_path), **asked)
        assert answer.json()["status"] == "completed", asked


def test_pictures_have_a_limit(tmp_path: Path) -> None:
    turn = {"role": "user", "content": [picture(), picture()]}
    answer = post(says(response()), write_policy(tmp_path), {"images": 1}, input=[turn])
    assert answer.status_code == 400
    assert "send at most 1" in answer.json()["error"]["message"]


# -- what is no request -------------------------------------------------------

BAD_BODIES: list[tuple[Json, str]] = [
    ({"input": []}, "at least one item"),
    ({"input": None}, "at least one item"),
    ({"input": [1]}, "give an object"),
    ({"input": [{"role": "king", "content": "x"}]}, "role 'king'"),
    ({"input": [{"role": "user", "content": [1]}]}, "must be an object with a type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "must be a string"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "has no picture"),
    ({"input": [{"role": "user", "content": [picture(file_id="f")]}]}, "twice"),
    ({"input": [{"role": "user", "content": [picture("/etc/x")]}]}, "data:"),
    ({"input": [{"role": "user", "content": [picture("data:image/png;base64,AAAA")]}]}, "no PNG"),
    ({"input": [{"role": "user", "content": [picture(), picture(URI, url=URI)]}]}, "twice"),
    ({"input": [{"role": ["user"], "content": "x"}]}, "role ['user']"),
    ({"background": True}, "fetched later, unchecked"),
    ({"previous_response_id": "resp_mmguard_1"}, "mended or withheld here"),
]


@pytest.mark.parametrize(("body", "told"), BAD_BODIES)
def test_bad_bodies_are_told_what_to_fix(body: Json, told: str, tmp_path: Path) -> None:
    answer = post(says(response()), write_policy(tmp_path), **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert told in answer.json()["error"]["message"]
