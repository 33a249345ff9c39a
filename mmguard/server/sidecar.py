"""What all requests share: policies bound, detectors loaded, connections, and room for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import Request as Call
from starlette.routing import BaseRoute

from mmguard import messages
from mmguard.errors import ImageError, MmguardError
from mmguard.models.openai import OpenAIModel
from mmguard.policy import Policy, load_policy
from mmguard.runtime import connect
from mmguard.server import wire
from mmguard.server.attach import choose
from mmguard.server.breaker import Breakers, Tried
from mmguard.server.exchange import Exchange
from mmguard.server.failures import Refused
from mmguard.server.fetch import fetch
from mmguard.server.gate import Gate
from mmguard.server.intake import inline
from mmguard.server.memory import Memory
from mmguard.server.settings import Settings
from mmguard.server.spans import open_tracing
from mmguard.server.watch import Scoring, Watch
from mmguard.types import Detector, Image

# Seconds that the upstream may take to accept a connection.
CONNECT = 10
log = logging.getLogger("mmguard.server")


class Sidecar:
    """One sidecar: who asks, under which policy, and whether there is room."""

    def __init__(
        self, settings: Settings, detectors: Mapping[str, Detector] | None = None, **http: Any
    ) -> None:
        self.settings = settings
        self.tracing = open_tracing(settings)
        self.upstream = (self.tracing.upstream if self.tracing else OpenAIModel)(
            settings.upstream or "http://inside/v1",
            "default",
            timeout=httpx.Timeout(settings.timeout, connect=min(settings.timeout, CONNECT)),
            limits=limits(settings),
            **http,
        )
        self.detectors: dict[str, Detector] = dict(detectors or {})
        self.policies = self.load()
        self.gate = Gate(settings.in_flight, settings.queue, settings.queue_seconds)
        self.breakers, self.memory = Breakers(settings.breaker), Memory(self.gate)
        # What answers a POST, by its path.
        self.posts: dict[str, BaseRoute] = {}
        self.watch = Watch(self)
        local = Tried(self.detectors, self.breakers, settings.detector_timeout)
        self.scoring = (self.tracing.scoring if self.tracing else Scoring)(local, self.watch)

    def load(self) -> dict[str, Policy]:
        """All policies, bound; their detectors prove their canaries as they load."""
        found = {}
        for name in self.settings.policies:
            bound, local = connect(load_policy(name), {"target": self.upstream}, self.detectors)
            found[name] = bound
            self.detectors.update(local.detectors)
        return found

    def reload(self) -> bool:
        """Every policy file again, all of them or none; requests under way keep theirs."""
        try:
            loaded = self.load()
            self.scoring.local.detectors.update(self.detectors)
            self.policies = loaded
        except MmguardError as exc:
            log.error("policies stay as they were: %s", exc)
            return False
        log.info("policies: %s", ", ".join(sorted(p.tag for p in self.policies.values())))
        return True

    @property
    def flying(self) -> int:
        """Requests in flight."""
        return self.gate.flying

    def bearer(self, call: Call) -> str:
        """Whose request this is; nobody's, where there are no keys. Raises `Refused`."""
        settings = self.settings
        if not settings.keys:
            return ""
        key = call.headers.get("x-api-key", "")
        bearer = settings.bearer(call.headers.get("authorization", key))
        if bearer is None:
            raise Refused(
                401,
                "invalid_request_error",
                "this sidecar does not know the key",
                code="invalid_api_key",
            )
        return bearer

    def policy(self, call: Call, body: Mapping[str, Any] | None = None) -> Policy:
        """Under which policy this request is, as far as that can be told without its body."""
        bearer, model = self.bearer(call), (body or {}).get("model")
        asked = model if isinstance(model, str) else ""
        found = choose(self.settings, bearer, asked, call.scope["path"])
        return self.watch.under(self.policies[found.policy], bearer)

    def forward(self, call: Call) -> OpenAIModel:
        """The upstream, asked with the caller's own key where none is set."""
        given, key = call.headers.get("authorization"), self.settings.upstream_key
        if key:
            return self.upstream.bearing(f"Bearer {key}")
        return self.upstream.bearing(given) if given and not self.settings.keys else self.upstream

    async def read(self, call: Call) -> bytes:
        """The body, no larger and no slower than it may be."""
        seconds = self.settings.upload_timeout
        try:
            async with asyncio.timeout(seconds):
                return await self.take(call)
        except TimeoutError:
            told = f"the body did not come within {seconds:g} s"
            raise Refused(408, "invalid_request_error", told, code="body_too_slow") from None

    async def take(self, call: Call) -> bytes:
        limit, data = self.settings.body_mib * 2**20, bytearray()
        async for piece in call.stream():
            data += piece
            if len(data) > limit:
                told = f"the body has more than {self.settings.body_mib:g} MiB"
                raise Refused(413, "invalid_request_error", told, code="body_too_large")
        self.memory.took(len(data))
        return bytes(data)

    async def body(self, call: Call) -> wire.Json:
        return wire.load(await self.read(call))

    async def exchange(self, call: Call, data: bytes) -> Exchange:
        """The body as values, its pictures fetched and inlined; without such, as it came."""
        body = wire.load(data)
        wire.count(body)
        options = {name: value for name, value in body.items() if name != "messages"}
        sent, seen = await inline(body.get("messages"), self.fetch, self.settings.images)
        request = messages.parse(seen, options, fetch=refuse_path)
        if sent == body.get("messages") and wire.plain(data):
            return Exchange(self.forward(call), body, request, data=data)
        return Exchange(self.forward(call), {**body, "messages": sent}, request)

    async def fetch(self, url: str) -> Image:
        return await fetch(url, self.settings.pictures)


def limits(settings: Settings) -> httpx.Limits:
    """A connection for every call; idle ones are left before servers close them, often at 5 s."""
    kept = settings.in_flight
    return httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=3)


def refuse_path(url: str) -> bytes:
    raise ImageError("name a picture by a data URI or URL in image_url.url")
