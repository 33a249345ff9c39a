"""Which models the upstream has, in OpenAI's form or in Anthropic's: as the upstream tells it."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request as Call
from fastapi.responses import Response

from mmguard.errors import InputError
from mmguard.server import claude
from mmguard.server.chat import PLAIN
from mmguard.server.sidecar import Sidecar


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def models(call: Call) -> Response:
        return await listed(sidecar, call, "models")

    @router.get("/v1/models/{name:path}")
    async def model(call: Call, name: str) -> Response:
        if not all(step.strip(".") for step in name.split("/")):
            raise InputError(f"model {name!r}: give a model's name")
        return await listed(sidecar, call, f"models/{quote(name, safe='')}")

    return router


async def listed(sidecar: Sidecar, call: Call, path: str) -> Response:
    sidecar.policy(call)
    own = "anthropic-version" in call.headers
    upstream = claude.forward(sidecar, call) if own else sidecar.forward(call)
    params = call.url.query or None
    with upstream.reported():
        response = await upstream.aclient.get(path, params=params, headers=upstream.headers)
    return Response(response.content, response.status_code, PLAIN)
