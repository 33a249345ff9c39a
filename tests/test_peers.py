"""The comparison with other products: its harness, on mmguard alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as told
from benchmarks.peers.probe import CHECKS, Answer, judge
from benchmarks.peers.products import LOCKS, PACKAGES, PEERS, Place
from benchmarks.peers.run import compare
from benchmarks.peers.upstream import HARM, PLANTED, frames, whole
from mmguard.bench.server import Plans


def test_mmguard_beside_a_direct_call(tmp_path: Path) -> None:
    plans = Plans(("mmguard off", "mmguard"), 2, 0.02, (20,), (1, 2))
    made = asyncio.run(compare(plans.policies, plans, tmp_path))
    assert not made["did not start"]
    assert len(made["cells"]) == 2 * 2 * 3
    assert all(cell["requests"] and not cell["failed"] for cell in made["cells"])
    assert {line["peer"] for line in made["ratios"]} == {"mmguard off"}
    assert all(line["rate"]["median"] > 0 for line in made["ratios"])
    assert set(made["leaks"]["direct"].values()) == {"leaks"}
    assert set(made["leaks"]["mmguard off"].values()) == {"leaks"}
    assert set(made["leaks"]["mmguard"].values()) == {"held"}
    assert set(made["conformance"]["mmguard"].values()) == {True}
    lost = {name for name, kept in made["conformance"]["mmguard off"].items() if not kept}
    assert lost == {"block is told", "stream: block is told"}
    told.show(json.loads(json.dumps(made)))


def test_what_a_product_lets_out_is_seen() -> None:
    calm = Answer(200, whole(PLANTED["fine"]))
    for name, messages in PLANTED.items():
        expected = "leaks" if HARM in json.dumps(messages) else "held"
        assert judge(calm, Answer(200, whole(messages)), False) == expected, name
        assert judge(calm, Answer(200, b"".join(frames(messages))), True) == expected, name
    assert judge(Answer(422, b"{}"), Answer(422, b"{}"), False) == "not served"
    assert judge(Answer(200, b"data: {", broken=True), Answer(500), True) == "not served"


def test_an_answer_of_nothing_keeps_nothing() -> None:
    blank = dict.fromkeys(
        ("echo", "picture", "rich", "two", "tool", "busy", "block", "stream", "stream of two"),
        Answer(),
    ) | dict.fromkeys(("stream of a tool", "stream blocked"), Answer(broken=True))

    def holds(name: str) -> bool:
        try:
            return bool(CHECKS[name](blank))
        except (ValueError, LookupError, StopIteration):
            return False

    assert not [name for name in CHECKS if holds(name)]


def test_bodies_are_dressed_for_who_wants_it() -> None:
    place = Place(1, 1, "/x", b',"extra":1', b"openai/")
    assert place.dress(b'{"model":"mock"}') == b'{"model":"openai/mock","extra":1}'
    assert Place(1, 1).dress(b'{"model":"mock"}') == b'{"model":"mock"}'


@pytest.mark.parametrize("package", PACKAGES)
def test_every_version_is_pinned(package: str) -> None:
    lines = (LOCKS / f"{package}.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    assert all("==" in line for line in lines)
    assert any(product.package == package for product in PEERS.values())
