"""How busy the sidecar is: requests by decision over time, times by stage, in flight.

Up to an hour from memory, requests that failed among them; longer from the audit, decided
choices alone.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from mmguard.server.pulse import SECONDS, SLOTS, Slot, figures, merge, quantile
from mmguard.server.reader import Reader
from mmguard.server.sidecar import Sidecar

Json = dict[str, Any]
# Steps of a chart, whatever time it shows.
STEPS = 60
SPANS = (900, 3600, 86400, 604800)


async def tell_load(sidecar: Sidecar, reader: Reader | None, seconds: float) -> Json:
    """The figures of the last so many seconds, of those in `SPANS` the next longer."""
    span = next((span for span in SPANS if span >= seconds), SPANS[-1])
    pulse = sidecar.watch.pulse
    now = {"flying": sidecar.gate.flying, "limit": sidecar.settings.in_flight, "span": span}
    if reader is None or span <= SECONDS * SLOTS:
        return now | remembered(pulse.since(span), span)
    return now | await kept(reader, span)


def remembered(slots: list[Slot], span: float) -> Json:
    step = span / STEPS
    end = time.time()
    begun = end - span
    groups: defaultdict[int, list[Slot]] = defaultdict(list)
    for slot in slots:
        groups[min(STEPS - 1, max(0, int((slot.begun - begun) / step)))].append(slot)
    first = min(groups, default=STEPS)
    points = [point(groups[i]) if i >= first else {"decisions": {}} for i in range(STEPS)]
    told = {"source": "memory", "begun": begun, "step": step, "points": points}
    return told | {"stages": list(figures(merge(slots)))}


def point(slots: Iterable[Slot]) -> Json:
    decisions: Counter[str] = Counter()
    slots = list(slots)
    for slot in slots:
        decisions.update(slot.decisions)
    whole = merge(slots).get("whole")
    times = {"p50": quantile(whole, 0.5), "p95": quantile(whole, 0.95)} if whole else {}
    peak = max((slot.peak for slot in slots), default=0)
    return {"decisions": decisions, "peak": peak, **times}


async def kept(reader: Reader, span: float) -> Json:
    step = span / STEPS
    begun = time.time() - span
    points: list[Json] = [{"decisions": {}} for _ in range(STEPS)]
    for place, action, count in await reader.counts(begun, step):
        if 0 <= place < STEPS:
            points[place]["decisions"][action] = count
    rows = await reader.sample(begun)
    told = {"source": "audit", "begun": begun, "step": step, "points": points}
    return told | {"stages": percentiles(rows), "sampled": len(rows)}


def percentiles(rows: Iterable[Json]) -> list[Json]:
    """Each stage's median and 95th percentile."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for stage, ms in spent(row).items():
            times[stage].append(ms)
    return [
        {"stage": stage, "p50": rank(ms, 0.5), "p95": rank(ms, 0.95), "n": len(ms)}
        for stage, ms in times.items()
    ]


def spent(row: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds by stage of one kept decision, as `pulse.spent` has them of a fresh one."""
    found = {"whole": row["ms"]}
    for finding in row["trail"]:
        name = f"checks {finding.get('stage', '')}"
        found[name] = max(found.get(name, 0.0), finding.get("ms", 0.0))
    for call in row["detail"]["calls"]:
        name = f"model {call['stage']}"
        found[name] = found.get(name, 0.0) + call["ms"]
    return {name: ms for name, ms in found.items() if ms > 0}


def rank(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
