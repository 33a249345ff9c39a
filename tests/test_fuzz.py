"""What is fuzzed, for a moment each: the seeds, what once failed, and changes of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.fuzz import targets
from benchmarks.fuzz.__main__ import fuzz
from benchmarks.fuzz.box import Box, mutate, play
from benchmarks.fuzz.oracle import heard
from benchmarks.fuzz.seeds import dictionary, seeds
from tests.upstream import streamed
from tests.world import BAD


@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_seed_breaks_a_promise(name: str) -> None:
    for data in seeds(name):
        targets.TARGETS[name](data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_change_of_a_seed_breaks_a_promise(name: str, tmp_path: Path) -> None:
    report = fuzz(name, 1, tmp_path / name, "random")
    assert report["cases"] > 20
    assert report["failures"] == []


def test_failures_are_kept_once_for_each_reason(tmp_path: Path) -> None:
    def target(data: bytes) -> None:
        targets.check(b"x" not in data, "x")
        targets.check(b"y" not in data, "y")

    box = Box(target, tmp_path)
    play(box, [b"x", b"xx", b"y", b"z"], [b"w"], 0)
    assert (box.cases, len(box.reasons)) == (4, 2)
    kept = [path.read_bytes() for path in tmp_path.iterdir() if not path.suffix]
    assert sorted(kept) == [b"x", b"y"]


def test_a_leak_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under a policy that checks nothing, banned words come out."""
    open_to_all = ({"mode": "off", "output": []}, *targets.POLICIES[1:])
    monkeypatch.setattr(targets, "POLICIES", open_to_all)
    targets.world.cache_clear()
    report = fuzz("leak", 1, tmp_path / "leak", "random")
    targets.world.cache_clear()
    assert any("banned words" in reason for reason in report["failures"])


def test_a_caller_hears_pieces_as_one() -> None:
    stream = streamed([{"content": BAD[0]}, {"role": "x", "refusal": "no"}, {"content": BAD[1:]}])
    assert heard(stream, True) == {("0", "delta", "content"): BAD, ("0", "delta", "refusal"): "no"}
    whole = {"choices": [{"index": 3, "message": {"tool_calls": [{"function": {"name": BAD}}]}}]}
    path = ("3", "message", "tool_calls", "0", "function", "name")
    assert heard(json.dumps(whole).encode(), False) == {path: BAD}
    assert heard(b"nonsense", False) == {}


def test_changes_are_of_bytes_words_and_others() -> None:
    luck = random.Random(0)
    made = {mutate(b"aaaa", [b"WORD"], [b"bbbb"], luck) for _ in range(200)}
    assert any(b"WORD" in one for one in made)
    assert any(b"bb" in one for one in made)
    assert len(made) > 100


def test_the_dictionary_is_libfuzzers() -> None:
    assert all(line[0] == line[-1] == '"' for line in dictionary().splitlines())
