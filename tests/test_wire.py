"""The wire as values: what is said is found wherever it stands, and odd bodies are told so."""

from __future__ import annotations

import asyncio
import json
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mmguard.errors import InputError
from mmguard.server import wire
from mmguard.server.ledger import Ledger
from tests.upstream import Cuts, client, completion, write_policy

Json = dict[str, Any]
ODD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["index", "content", "role", "type", "id", "text", "url", "arguments"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
TEXTS = st.text("ab \n", max_size=5)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"id": st.just("c"), "type": st.just("function")},
        optional={"function": st.fixed_dictionaries({"name": TEXTS, "arguments": TEXTS})},
    ),
    max_size=3,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("assistant")},
    optional={
        "reasoning_content": TEXTS,
        "content": TEXTS | st.none(),
        "refusal": TEXTS | st.none(),
        "tool_calls": CALLS,
        "vendor": TEXTS,
    },
)


def deltas(message: Json, size: int) -> list[Json]:
    """The message as a server streams it: field by field, a few characters at a time."""
    made: list[Json] = [{"role": message["role"], "content": ""}]
    for name in sorted(message, key=lambda n: [*wire.ORDER, n].index(n)):
        if name == "tool_calls":
            for i, call in enumerate(message[name]):
                parts = call.get("function", {})
                made.append({"tool_calls": [{**call, "index": i, "function": {}}]})
                for field, text in parts.items():
                    cuts = pieces(text, size)
                    made += [{name: [{"index": i, "function": {field: cut}}]} for cut in cuts]
        elif name != "role" and message[name]:
            made += [{name: piece} for piece in pieces(message[name], size)]
    return made


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@given(MESSAGES, st.integers(1, 4))
def test_a_message_says_the_same_whole_and_in_deltas(message: Json, size: int) -> None:
    spoken = wire.Spoken()
    assert "".join(map(spoken.add, deltas(message, size))) == wire.text_of(message)


@given(ODD)
def test_every_string_of_a_field_is_said_once(value: Any) -> None:
    def walk(name: str, inner: Any, within: bool = False) -> list[str]:
        if isinstance(inner, str):
            return [inner] if inner and (within or name not in wire.MUTE) else []
        named = inner.items() if isinstance(inner, dict) else []
        listed = inner if isinstance(inner, list) else []
        found = [walk(key, one, within or name == "arguments") for key, one in named]
        found += [walk("", one, within or name == "arguments") for one in listed]
        return list(chain.from_iterable(found))

    said = [text for _, text in wire.said({"vendor": value})]
    assert sorted(said) == sorted(walk("vendor", value))


@given(st.lists(MESSAGES, max_size=8), st.lists(st.integers(0, 9), max_size=20))
def test_a_ledger_lets_out_no_more_than_was_taken(said: list[Json], steps: list[int]) -> None:
    ledger, frames, out, taken = Ledger(), list[bytes](), b"", 0
    for i, delta in enumerate(said):
        frames.append(b"<%d>" % i)
        ledger.add(frames[-1], delta)
    ends = [frame.end for frame in ledger.frames]
    for step in steps:
        out += ledger.take(ledger.text[taken : taken + step]) or b""
        taken = min(taken + step, len(ledger.text))
        gone = [frame for frame, end in zip(frames, ends, strict=True) if end <= taken]
        assert out in (b"".join(gone), b"")
        assert ledger.text[:taken].endswith(ledger.owed)
    out += (ledger.take(ledger.text[taken:]) or b"") + ledger.flush()
    assert out == b"".join(frames)
    assert ledger.owed == ""


def test_a_ledger_knows_what_never_came() -> None:
    ledger = Ledger()
    ledger.add(b"<0>", {"content": "fine"})
    assert ledger.take("other") is None
    assert ledger.take("fine") == b"<0>"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"a": ' * 100_000, "no JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "no JSON"),
        (b'{"n": ' + b"1" * 5000 + b"}", "no JSON"),
        (b'{"messages": 1, "messages": 2}', "twice"),
        (b'{"messages": [{"role": "user", "role": "tool"}]}', "twice"),
        (b"\xff\xfe", "no JSON"),
        (b"7", "must be a JSON object"),
    ],
)
def test_bodies_that_cannot_be_read_are_the_callers_error(data: bytes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        wire.load(data)


def test_half_a_character_is_spelled_out() -> None:
    assert json.loads(wire.dump({"a": "\ud83d"})) == {"a": "\ud83d"}
    assert wire.dump({"a": "é"}) == '{"a":"é"}'.encode()


def test_no_depth_is_too_deep_to_be_read() -> None:
    value: Any = "deep"
    for _ in range(20_000):
        value = [value]
    assert wire.text_of({"vendor": value}) == "deep"
    while isinstance(value, list):
        value = value.pop()


ANYWHERE = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ASK = {"model": "up", "messages": [{"role": "user", "content": "hello"}]}


def status(policy: Path, body: Json, answer: bytes, stream: bool) -> int:
    """What the caller gets; no exception reaches the server."""

    async def call() -> int:
        async with client(lambda request: httpx.Response(200, stream=Cuts([answer])), policy) as c:
            found = await c.post("chat/completions", content=json.dumps({**body, "stream": stream}))
            return found.status_code

    return asyncio.run(call())


@ANYWHERE
@given(ODD, st.sampled_from(["content", "role", "part", "image", "messages", "n", "seed"]))
def test_odd_requests_are_no_crash(tmp_path: Path, value: Any, where: str) -> None:
    part = value if where == "part" else {"type": "image_url", "image_url": value}
    message = {
        "content": {"role": "user", "content": value},
        "role": {"role": value, "content": "x"},
    }.get(where, {"role": "user", "content": [part] if where in ("part", "image") else "x"})
    body = {**ASK, "messages": [message]}
    if where in ("messages", "n", "seed"):
        body[where] = value
    answer = json.dumps(completion({"content": "fine"})).encode()
    assert status(write_policy(tmp_path), body, answer, False) in (200, 400, 413, 502)


@ANYWHERE
@given(
    ODD,
    st.sampled_from(["choices", "choice", "message", "delta", "index", "usage", "finish_reason"]),
    st.booleans(),
    st.booleans(),
)
def test_odd_answers_are_no_crash(
    tmp_path: Path, value: Any, where: str, stream: bool, harm: bool
) -> None:
    said = {"content": "some BAD words" if harm else "fine"}
    choice: Json = {"index": 0, "message": said, "delta": said, "finish_reason": "stop"}
    choice |= {where: value} if where in choice else {}
    body = {"choices": value if where == "choices" else [value if where == "choice" else choice]}
    body |= {"usage": value} if where == "usage" else {}
    data = json.dumps(body).encode()
    answer = b"data: " + data + b"\n\ndata: [DONE]\n\n" if stream else data
    assert status(write_policy(tmp_path), ASK, answer, stream) in (200, 502)
