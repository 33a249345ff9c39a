"""What Prometheus can read: counts and times, under labels of which there are few.

Labels are routes, policy tags, detectors, steps, stages, known categories and fixed words,
never anything that a caller or a model wrote. Times are in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from mmguard.detect.hazards import HAZARDS
from mmguard.server.visit import Visit, number
from mmguard.types import Call, Finding, Guarded

if TYPE_CHECKING:
    from mmguard.server.audit import Audit
    from mmguard.server.breaker import Breakers
    from mmguard.server.gate import Gate

LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
CATEGORIES = frozenset({*HAZARDS.values(), "harassment"})
# Set by whoever starts several workers: prometheus_client's folder.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
STATES = ("closed", "trial", "open")
# OpenAI's names of what a model read and wrote, and ours.
TOKENS = (("prompt_tokens", "prompt"), ("completion_tokens", "completion"))


class Metrics:
    """One sidecar's; `categories` are the names that its policies know beside the hazards."""

    def __init__(self, categories: Callable[[], Collection[str]] = frozenset) -> None:
        self.registry, self.categories = CollectorRegistry(), categories
        self.levels: Collector | None = None
        self.requests = self.count(
            "requests", "Requests under /v1", "route", "policy", "decision", "status"
        )
        self.choices = self.count(
            "choices",
            "Choices by what was done and asked for",
            "policy",
            "action",
            "decision",
            "step",
        )
        self.errors = self.count("detector_errors", "Failures of detectors", "detector")
        self.failures = self.count("step_failures", "Failures of repair steps", "step")
        self.findings = self.count(
            "findings", "Findings that were no pass, by top category", "category", "action"
        )
        self.pictures = self.count("pictures", "Pictures of checked requests", "policy")
        self.seen = self.count("pictures_seen", "Pictures that a check saw", "policy")
        self.calls = self.count("model_calls", "Calls of models, but judges'", "stage")
        self.tokens = self.count("model_tokens", "Tokens of models, but judges'", "stage", "kind")
        self.latency = self.time("request_seconds", "Whole requests", LONG, "route")
        self.first = self.time("first_byte_seconds", "Streams to their first byte", LONG, "route")
        self.guard = self.time("guard_seconds", "Detectors in a request", SHORT, "policy")
        self.detector = self.time(
            "detector_seconds", "One score, waiting included", SHORT, "detector"
        )

    def count(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"mmguard_{name}", told, labels, registry=self.registry)

    def time(self, name: str, told: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"mmguard_{name}", told, labels, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """With several workers: their counts together, and the levels of the one that answers."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        both = CollectorRegistry()
        MultiProcessCollector(both)  # type: ignore[no-untyped-call]  # it has no types
        if self.levels:
            both.register(Own(self.levels))
        return generate_latest(both)

    def watch(self, levels: Collector) -> None:
        """What is read when asked for."""
        self.levels = levels
        self.registry.register(levels)

    # -- what happened ----------------------------------------------------------

    def leave(self, visit: Visit) -> None:
        """A request has ended."""
        status = str(visit.status) if 100 <= visit.status < 600 else "none"
        self.requests.labels(visit.route, visit.policy, visit.decision, status).inc()
        self.latency.labels(visit.route).observe(visit.seconds)
        if visit.choices:
            self.guard.labels(visit.policy).observe(visit.guard)
        if visit.first is not None:
            self.first.labels(visit.route).observe(visit.first)

    def answer(
        self, visit: Visit, answers: Sequence[Guarded], usage: Mapping[str, Any] | None
    ) -> None:
        """A request's choices are decided; `usage` is what the upstream says of their drafts."""
        if not answers:
            return
        self.pictures.labels(visit.policy).inc(visit.pictures[1])
        self.seen.labels(visit.policy).inc(visit.pictures[0])
        if any(call.stage == "draft" for guarded in answers for call in guarded.calls):
            self.calls.labels("draft").inc()
        for name, kind in TOKENS:
            self.tokens.labels("draft", kind).inc(number(usage, name))
        for guarded in answers:
            self.choice(guarded)

    def choice(self, guarded: Guarded) -> None:
        self.choices.labels(guarded.policy, guarded.action, guarded.decision, guarded.step).inc()
        for finding in guarded.trail:
            self.find(finding)
        for call in guarded.calls:
            if call.stage != "draft":
                self.call(call)

    def find(self, finding: Finding) -> None:
        if finding.error and finding.stage == finding.detector:
            self.failures.labels(finding.detector).inc()
        elif finding.error:
            self.errors.labels(finding.detector).inc()
        elif finding.action != "pass":
            self.findings.labels(self.known(finding.category), finding.action).inc()

    def known(self, category: str) -> str:
        """A detector may call a category what it likes; here only known names count by name."""
        if not category:
            return "none"
        return category if category in CATEGORIES or category in self.categories() else "other"

    def call(self, call: Call) -> None:
        self.calls.labels(call.stage).inc()
        used = asdict(call.reply.usage)
        for _, kind in TOKENS:
            self.tokens.labels(call.stage, kind).inc(number(used, kind))


class Own(Collector):
    """Levels of one process among several, by its id."""

    def __init__(self, levels: Collector) -> None:
        self.levels = levels

    def collect(self) -> Iterator[Metric]:
        for metric in self.levels.collect():
            own = {"worker": str(os.getpid())}
            metric.samples = [s._replace(labels={**s.labels, **own}) for s in metric.samples]
            yield metric


class Levels(Collector):
    """What is read when asked for: requests in flight, breakers, and the audit's state."""

    def __init__(self, gate: Gate, audit: Audit | None, breakers: Breakers) -> None:
        self.gate, self.audit, self.breakers = gate, audit, breakers

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("mmguard_in_flight", "Requests in flight", self.gate.flying)
        yield GaugeMetricFamily("mmguard_in_flight_limit", "Their limit", self.gate.limit)
        yield GaugeMetricFamily("mmguard_queued", "Requests that wait", self.gate.waiting)
        yield from self.broken()
        if audit := self.audit:
            yield GaugeMetricFamily("mmguard_audit_healthy", "1: it can write", audit.healthy())
            yield GaugeMetricFamily("mmguard_audit_waiting", "Rows not yet written", audit.waiting)
            yield CounterMetricFamily("mmguard_audit_rows", "Rows written", audit.written)
            yield CounterMetricFamily("mmguard_audit_lost", "Rows lost", audit.lost)

    def broken(self) -> Iterator[Metric]:
        labels, told = ("part", "name"), "Parts: 0 asked, 1 on trial, 2 not asked"
        state = GaugeMetricFamily("mmguard_breaker_state", told, labels=labels)
        opened = CounterMetricFamily("mmguard_breaker_opened", "Parts given up", labels=labels)
        for one in self.breakers.all():
            state.add_metric((one.kind, one.name), STATES.index(one.state))
            opened.add_metric((one.kind, one.name), one.opened)
        yield from (state, opened)
