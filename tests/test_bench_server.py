"""What the sidecar's benches count: every arm, no leak, and nothing kept under faults."""

from __future__ import annotations

import asyncio

import pytest

from mmguard.bench.host import ANSWER, BANNED, FINE, HARM
from mmguard.bench.server import Plans, bench_server, noise, quantiles, spoken
from mmguard.bench.soak import bench_soak, grown
from mmguard.cli.bench import spell_growth


def test_figures_of_every_arm_and_kind_of_traffic() -> None:
    plans = Plans(("off", "phrases"), 1, 0.02, (0, 20), (1, 2))
    made = asyncio.run(bench_server(plans))
    assert len(made["cells"]) == 2 * 2 * 2 * 3
    assert all(cell["requests"] and not cell["failed"] for cell in made["cells"])
    # A cell may be a single request, and the machine busy: together they tell.
    assert sum(cell["added_p50_ms"] for cell in made["cells"]) > 0
    leaks = {arm: found["leaked"] for arm, found in made["leaks"].items()}
    assert leaks == {"direct": 20, "off": 20, "phrases": 0}
    assert made["machine"]["cores"]


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind() -> None:
    made = asyncio.run(bench_soak(200, 8, "phrases"))
    assert made["leaked"] == 0
    assert sum(made["answers"].values()) == made["requests"] == 200
    assert made["grown"]["tasks"] == 0
    assert {stage["in_flight"] for stage in made["held"]} == {0}
    assert made["held"][0]["tasks"] == made["held"][-1]["tasks"]
    assert set(made["answers"]) <= {"200", "400", "500", "502", "left"}


def test_a_soak_ends_when_its_time_does() -> None:
    made = asyncio.run(bench_soak(10**6, 2, "off", 0.02))
    assert 0 < made["requests"] < 10**6
    assert made["seconds"] < 60


def test_what_has_grown_is_told() -> None:
    held = {"memory_mib": 50.0, "files": 10, "tasks": 3}
    more = {"memory_mib": 55.0, "files": 12, "tasks": 3}
    assert grown([held, more]) == {"memory": 0.1, "files": 2, "tasks": 0}
    nothing = {"memory_mib": None, "files": None, "tasks": 3}
    assert grown([nothing, nothing]) == {"tasks": 0}
    assert spell_growth(grown([held, more])) == "memory +10.0%, files +2, tasks +0"


def test_answers_are_read_whole_and_in_pieces() -> None:
    body = FINE[0].partition(b"\r\n\r\n")[2]
    assert spoken(body) == ANSWER
    frames = b"".join(piece.split(b"\r\n", 1)[1].removesuffix(b"\r\n") for piece in HARM[1][1:-1])
    assert spoken(frames).startswith(f"Sure, here is {BANNED}.")


def test_pictures_have_their_size_and_quantiles_their_names() -> None:
    assert 180 * 1024 < len(noise(200)) < 220 * 1024
    assert quantiles([0.001, 0.003, 0.002]) == pytest.approx(
        {"p50_ms": 2, "p95_ms": 2.9, "p99_ms": 2.98}
    )
