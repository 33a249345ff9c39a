"""The sidecar's application: which routes there are, and how failures are told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from fastapi import FastAPI, Request as Call
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from mmguard.errors import MmguardError
from mmguard.server import (
    catalog,
    chat,
    claude,
    completions,
    detections,
    gate,
    guardrail,
    health,
    moderations,
    panel,
    responses,
    watch,
    wire,
)
from mmguard.server.attach import check_routes
from mmguard.server.failures import tell
from mmguard.server.settings import Settings
from mmguard.server.sidecar import Sidecar
from mmguard.types import Detector

# Each makes a router over one sidecar.
ROUTES = (
    chat.routes,
    catalog.routes,
    completions.routes,
    responses.routes,
    claude.routes,
    moderations.routes,
    guardrail.routes,
    detections.routes,
    watch.routes,
    panel.routes,
    health.routes,
)


def make_app(
    settings: Settings, detectors: Mapping[str, Detector] | None = None, **http: Any
) -> FastAPI:
    """The application, with detectors of your own by name.

    `transport=` and `atransport=` replace httpx's, in tests.
    """
    sidecar = Sidecar(settings, detectors, **http)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # In a thread of a test, or on Windows, there are no signals to hear.
        with suppress(NotImplementedError, RuntimeError, ValueError, AttributeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, sidecar.reload)
        yield
        await sidecar.upstream.aclient.aclose()
        sidecar.upstream.close()
        await asyncio.to_thread(sidecar.watch.close)
        if sidecar.tracing:
            await asyncio.to_thread(sidecar.tracing.close)

    app = FastAPI(title="mmguard", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.sidecar = sidecar

    for routes in ROUTES:
        router = routes(sidecar)
        app.include_router(router)
        sidecar.posts |= {r.path: r for r in router.routes if isinstance(r, Route) and posted(r)}

    check_routes(settings.attach, paths())
    for kind in (MmguardError, Exception):
        app.add_exception_handler(kind, explain)
    app.add_exception_handler(ClientDisconnect, nobody)
    app.add_middleware(gate.Porter, sidecar=sidecar)
    app.add_middleware(watch.Door, watch=sidecar.watch)
    if sidecar.tracing:
        app.add_middleware(sidecar.tracing.door)
    app.add_middleware(panel.Shield)
    return app


def posted(route: Route) -> bool:
    return "POST" in (route.methods or ())


def paths() -> list[str]:
    """Where something can be posted."""
    # Routers look at their sidecar when somebody asks.
    routers = [routes(cast(Sidecar, None)) for routes in ROUTES if routes is not panel.routes]
    found = (route for router in routers for route in router.routes)
    return [route.path for route in found if isinstance(route, Route) and posted(route)]


async def explain(call: Call, exc: Exception) -> Response:
    status, body, more = tell(exc)
    return Response(wire.dump(body), status, {"content-type": "application/json", **more})


async def nobody(call: Call, exc: Exception) -> Response:
    """The caller has left: nobody reads this."""
    return Response(status_code=499)
