"""Whether the sidecar lives, and whether requests should come to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

if TYPE_CHECKING:
    from mmguard.server.sidecar import Sidecar


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def healthy() -> dict[str, Any]:
        return {"status": "ok", "policies": tags(sidecar)}

    @router.get("/readyz")
    async def ready() -> Response:
        """503 while a detector of the default policy is given up.

        No detector is here that could not tell its canaries apart: its policy did not load.
        """
        breakers = sidecar.breakers
        default = sidecar.policies[sidecar.settings.policy]
        down = sorted(n for kind, n in breakers.open() if kind == "detector")
        lost = [name for name in down if name in default.detectors]
        told = {"status": "unready" if lost else "ok", "policies": tags(sidecar), "open": down}
        wait = {"retry-after": f"{breakers.rule.seconds:.0f}"} if lost else {}
        return JSONResponse(told, 503 if lost else 200, wait)

    return router


def tags(sidecar: Sidecar) -> list[str]:
    return sorted(policy.tag for policy in sidecar.policies.values())
