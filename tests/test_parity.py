"""Rule 6: every driver gives an equal `Guarded` for equal input."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mmguard import drive, guard
from mmguard.models.scripted import ScriptedDetector
from mmguard.policy import Policy
from mmguard.runtime import Concurrent
from mmguard.types import Guarded, Request
from tests.world import BAD, SEEN, UNREADABLE, ask, harm_detector, make_policy, make_world

REQUESTS = {
    "harmless": ask("hello"),
    "harmful": SEEN,
    "input": ask(f"{BAD} words"),
    "unreadable": UNREADABLE,
    "several": ask("compare", *SEEN.images, *SEEN.images),
}
BOTH = [{"detector": "harm"}, {"detector": "other", "action": "block"}]
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "rewrite": {"repair": ["detoxify"]},
    "no mercy": {"output": [{"detector": "harm", "action": "block"}]},
    "two": {"output": BOTH},
    "two, a block first": {"output": BOTH[::-1]},
    "input": {"input": [{"detector": "harm", "action": "block"}]},
    "resample": {"repair": ["resample", "caption"]},
    "best": {"repair": ["resample"], "resample": {"tries": 2, "helper": "target"}},
    "excise": {"repair": ["excise", "detoxify"], "excise": {"most": 1, "mark": "[...]"}},
    "deadline": {"repair": ["caption", "rewrite"], "deadline": 60},
    "one picture at a time, unchecked": {"caption": {"check": False}},
    "all pictures together": {"caption": {"together": True, "max_tokens": 9}},
    "judge": {
        "output": [{"detector": "harm", "strictness": 0.95, "grey": 0.5}],
        "judge": {"model": "target"},
    },
    "audit": {"mode": "audit"},
    "off": {"mode": "off", "output": [], "repair": []},
    "window": {"stream": {"mode": "window", "window": 8, "hold": 4}},
    "early": {"stream": {"window": 8}},
    "early, by a judge": {
        "output": [{"detector": "harm", "strictness": 0.95, "grey": 0.5}],
        "judge": {"model": "target"},
        "stream": {"window": 8},
    },
}


def world(policy: Policy) -> Any:
    other = ScriptedDetector(lambda s: 0.9 if "harmless" in (s.reply or "") else 0.2, name="other")
    return make_world(policy, detectors=[harm_detector(), other])


def streamed(request: Request, policy: Policy, runtime: Any) -> tuple[str, Guarded]:
    flow, text = drive.stream(guard(request, policy, stream=True), runtime), ""
    while True:
        try:
            text += next(flow)
        except StopIteration as stop:
            return text, stop.value


async def astreamed(request: Request, policy: Policy, runtime: Any) -> tuple[str, Guarded]:
    flow = drive.astream(guard(request, policy, stream=True), Concurrent(runtime))
    *pieces, last = [piece async for piece in flow]
    assert isinstance(last, Guarded)
    return "".join(str(piece) for piece in pieces), last


@pytest.mark.parametrize("fields", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_parity(request_: Request, fields: dict[str, Any]) -> None:
    policy, runtime = world(make_policy(**fields))
    alone = drive.run(guard(request_, policy), runtime)
    others = drive.run_many([guard(r, policy) for r in (SEEN, request_, ask())], runtime)
    assert others[1] == alone
    streams = [streamed(request_, policy, runtime)]
    streams.append(asyncio.run(astreamed(request_, policy, runtime)))
    for text, guarded in streams:
        assert (text, guarded) == (alone.text, alone)
    assert asyncio.run(drive.arun(guard(request_, policy), Concurrent(runtime))) == alone
