"""Where a request is being traced, and how flows are followed there; nothing at all where not.

This imports no OpenTelemetry: `traces` does, once settings ask for it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from mmguard.asks import Flow
from mmguard.errors import MissingExtra

if TYPE_CHECKING:
    from mmguard.server.settings import Settings
    from mmguard.server.traces import Node, Tracing

T = TypeVar("T")
# The span that whatever happens now belongs to.
NOW: ContextVar[Node | None] = ContextVar("now", default=None)


def open_tracing(settings: Settings) -> Tracing | None:
    """Raises `MissingExtra`."""
    if not settings.otel:
        return None
    try:
        from mmguard.server.traces import Tracing
    except ImportError as exc:
        why = "otel: true (set by OTEL_EXPORTER_OTLP_ENDPOINT too, unless MMGUARD_OTEL is false)"
        raise MissingExtra("opentelemetry's SDK and exporter", "otel", why) from exc
    return Tracing()


def watched(flow: Flow[T], index: int = 0) -> Flow[T]:
    """The flow, as a span with one for each of its stages if the request is traced."""
    node = NOW.get()
    return node.follow(flow, index) if node else flow
