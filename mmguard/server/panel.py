"""The operator's page at `/ui`: decisions, a playground, policies and load.

Served only where there is an operator's key. The page itself holds nothing secret; whatever it
asks under `/ui/api` needs the key, in a header, and comes as JSON that it writes as text.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, HTTPException, Path as Named, Request as Call
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmguard import __version__
from mmguard.errors import InputError
from mmguard.policy import Policy, load_policy, presets
from mmguard.server import trial, wire
from mmguard.server.failures import Refused
from mmguard.server.load import tell_load
from mmguard.server.reader import Query, Reader, open_reader
from mmguard.server.sidecar import Sidecar

Place = Annotated[int, Named(ge=0, lt=2**63)]
FOLDER = Path(__file__).parent / "ui"
FILES = {"": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
SHIELD = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
log = logging.getLogger("mmguard.server")


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()
    if sidecar.settings.operator_key is None:
        router.add_api_route("/ui", Hint().refuse)
        return router
    for place, name in FILES.items():
        router.add_api_route(f"/ui{place}", Asset(FOLDER / name).serve)
    panel = Panel(sidecar)
    # Side by side, so that whoever admits requests sees each of them.
    router.routes += asked(panel).routes + trial.routes(sidecar, panel.operator).routes
    return router


def asked(panel: Panel) -> APIRouter:
    """What the page asks."""
    router = APIRouter(prefix="/ui/api", dependencies=[Depends(panel.operator)])
    router.add_api_route("/state", panel.state)
    router.add_api_route("/names", panel.names)
    router.add_api_route("/decisions", panel.decisions, methods=["POST"])
    router.add_api_route("/decisions/{place}", panel.decision)
    router.add_api_route("/policies", panel.policies)
    router.add_api_route("/load", panel.load)
    return router


class Hint:
    """Where there is no page: the caller learns nothing, the log says once how to have it."""

    def __init__(self) -> None:
        self.told = False

    async def refuse(self) -> None:
        if not self.told:
            log.warning("/ui is not served: set operator_key, or MMGUARD_OPERATOR_KEY, to have it")
        self.told = True
        raise HTTPException(404)


class Asset:
    """One file of the page."""

    def __init__(self, path: Path) -> None:
        self.data, self.kind = path.read_bytes(), KINDS[path.suffix]

    async def serve(self) -> Response:
        return Response(self.data, media_type=self.kind)


class Panel:
    """What the page asks of one sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.reader = open_reader(sidecar.settings.audit)

    async def operator(self, call: Call) -> None:
        """Raises `Refused` for whoever does not bear the operator's key."""
        if not self.sidecar.settings.operates(call.headers.get("authorization", "")):
            log.warning("%s was asked without the operator's key", call.scope["route"].path)
            raise Refused(401, "invalid_request_error", "this is not the operator's key")

    @property
    def store(self) -> Reader:
        if self.reader is None:
            raise Refused(409, "no_audit", "decisions are not kept: set audit.path")
        return self.reader

    async def state(self) -> Response:
        """What the page must know first."""
        settings, watch = self.sidecar.settings, self.sidecar.watch
        audit, how = watch.audit, settings.audit
        known: wire.Json = {"version": __version__, "time": time.time(), "audit": None}
        if audit and self.reader:
            counts = {name: getattr(audit, name) for name in ("written", "waiting", "lost")}
            kept = {"texts": how.texts, "pictures": how.pictures, "healthy": audit.healthy()}
            known["audit"] = counts | kept
        flying = {"flying": self.sidecar.gate.flying, "limit": settings.in_flight}
        local = {"key_needed": bool(settings.upstream and not settings.upstream_key)}
        choice = {"policies": trial.choices(self.sidecar), "policy": settings.policy}
        return answer(known | flying | local | choice)

    async def names(self) -> Response:
        return answer(await self.store.names())

    async def decisions(self, call: Call) -> Response:
        """A page of decisions. Words that are looked for stand in the body, not in a URL."""
        body = await self.sidecar.body(call)
        try:
            query = Query.model_validate(body)
        except ValidationError as exc:
            error = exc.errors()[0]
            raise InputError(f"{'.'.join(map(str, error['loc']))}: {error['msg']}") from exc
        page = await self.store.find(query)
        return answer({"rows": page.rows, "more": page.more, "ended": page.ended})

    async def decision(self, place: Place) -> Response:
        row = await self.store.one(place)
        if row is None:
            raise Refused(404, "not_found", "this decision is not kept any more")
        return answer(row)

    async def policies(self) -> Response:
        """Those in use, with every strictness a number, and the other presets as they are."""
        own = self.sidecar.settings.policy
        bound = dict(sorted(self.sidecar.policies.items(), key=lambda pair: pair[0] != own))
        told = [describe(name, policy, self.users(name)) for name, policy in bound.items()]
        told += [describe(n, load_policy(n), None) for n in presets() if n not in bound]
        return answer({"policies": told})

    def users(self, name: str) -> list[str]:
        """Whose requests are under this policy; empty: everybody's."""
        settings = self.sidecar.settings
        return [
            who for who, key in settings.keys.items() if (key.policy or settings.policy) == name
        ]

    async def load(self, seconds: float = 3600) -> Response:
        return answer(await tell_load(self.sidecar, self.reader, seconds))


def describe(name: str, policy: Policy, users: list[str] | None) -> wire.Json:
    resolved = policy.model_dump(mode="json")
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=96)
    about = {"name": name, "tag": policy.tag, "description": policy.description}
    return {**about, "used": users is not None, "users": users or [], "yaml": text}


def answer(value: Any) -> Response:
    """JSON of anything, half characters too."""
    return Response(wire.dump(value), media_type="application/json")


class Shield:
    """ASGI: headers by which a browser keeps the page to itself, on all that is under `/ui`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sends(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SHIELD)
            await send(message)

        own = scope["type"] == "http" and (scope["path"] + "/").startswith("/ui/")
        await self.app(scope, receive, sends if own else send)
