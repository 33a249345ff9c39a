"""The older completions of plain texts: what chat does, with `choices[].text`."""

from __future__ import annotations

from fastapi import APIRouter, Request as Call
from fastapi.responses import Response

from mmguard import messages
from mmguard.errors import InputError
from mmguard.server import wire
from mmguard.server.chat import attended, streamed, whole
from mmguard.server.exchange import Exchange
from mmguard.server.form import PLAIN
from mmguard.server.sidecar import Sidecar
from mmguard.types import Request

# What no chat, which the repairs are, understands or means alike.
FOREIGN = frozenset({"prompt", "suffix", "echo", "best_of", "logprobs"})


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(call: Call) -> Response:
        body = await sidecar.body(call)
        policy = sidecar.policy(call, body)
        exchange = Exchange(sidecar.forward(call), body, read(body), PLAIN)
        if body.get("stream") is True:
            return await streamed(sidecar, exchange, policy, call)
        return await attended(call, whole(sidecar, exchange, policy))

    return router


def read(body: wire.Json) -> Request:
    """The prompt as the one turn of a conversation."""
    prompt = body.get("prompt")
    given = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
    if not isinstance(given, str):
        fix = "give one text; tokens cannot be read here, and several prompts need several calls"
        raise InputError(f"prompt: {fix}")
    options = {name: value for name, value in body.items() if name not in FOREIGN}
    return messages.parse(given, options)
