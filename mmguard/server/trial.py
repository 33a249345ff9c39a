"""The operator's playground: one question through a policy, with its draft for the operator's eyes.

The very flow that guards everybody's requests. What it finds goes back in the response, and
nowhere else: no audit, no metrics of decisions, no access line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, Request as Call
from fastapi.responses import Response
from pydantic import Field, ValidationError

from mmguard import drive, grading, guard, messages
from mmguard.asks import Flow
from mmguard.case import Case
from mmguard.errors import InputError, StepError
from mmguard.fields import Strict
from mmguard.models.openai import OpenAIModel
from mmguard.policy import Policy, load_policy, presets
from mmguard.record import describe, record
from mmguard.runtime import connect
from mmguard.sentences import Span, split
from mmguard.server import wire
from mmguard.server.chat import attended
from mmguard.server.exchange import Branch, Exchange
from mmguard.server.failures import Refused
from mmguard.server.intake import inline
from mmguard.server.sidecar import Sidecar, refuse_path
from mmguard.types import Finding, Guarded, Message, Request, Text

Allow = Callable[[Call], Awaitable[None]]
# Sentences that are scored one by one.
MOST = 100


class Question(Strict):
    """What is asked in the playground; `key` is for an upstream that wants the caller's own."""

    policy: str
    question: str = Field(min_length=1)
    picture: str = ""
    system: str = ""
    model: str = "default"
    max_tokens: int = Field(default=512, ge=1)
    key: str = Field(default="", repr=False)


class Passage(Strict):
    """A text whose sentences are scored as an answer to `question`, by a policy or its tag."""

    policy: str
    text: str
    question: str = ""


def routes(sidecar: Sidecar, allow: Allow) -> APIRouter:
    router = APIRouter(prefix="/ui/api", dependencies=[Depends(allow)])

    @router.post("/try")
    async def attempt(call: Call) -> Response:
        asked = read(Question, await sidecar.body(call))
        policy = await choose(sidecar, asked.policy)
        exchange = await put(sidecar, asked)
        start = time.perf_counter()
        guarded = await attended(call, run(sidecar, exchange, policy))
        return show(tell(exchange, guarded, (time.perf_counter() - start) * 1e3))

    @router.post("/sentences")
    async def sentences(call: Call) -> Response:
        asked = read(Passage, await sidecar.body(call))
        policy = await choose(sidecar, asked.policy)
        return show({"sentences": await attended(call, score(sidecar, policy, asked))})

    @router.get("/models")
    async def models() -> Response:
        with sidecar.upstream.reported():
            found = await upstream(sidecar, "").aclient.get("models")
        return Response(found.content, found.status_code, media_type="application/json")

    return router


def show(value: Any) -> Response:
    return Response(wire.dump(value), media_type="application/json")


def read(kind: type[Any], body: wire.Json) -> Any:
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        error = exc.errors()[0]
        raise InputError(f"{'.'.join(map(str, error['loc']))}: {error['msg']}") from exc


# -- under which policy -----------------------------------------------------------


def choices(sidecar: Sidecar) -> list[str]:
    """The policies that may be tried: those in use, then the other presets."""
    return list(dict.fromkeys([sidecar.settings.policy, *sidecar.policies, *presets()]))


async def choose(sidecar: Sidecar, name: str) -> Policy:
    """A policy by its name, or one in use by its tag; a preset's detectors are loaded now."""
    used = sidecar.policies
    tagged = {policy.tag: policy for policy in used.values()}
    if found := used.get(name) or tagged.get(name):
        return found
    if name not in presets():
        raise InputError(f"policy {name!r} is not in use any more: choose another")
    return await asyncio.to_thread(load, sidecar, name)


def load(sidecar: Sidecar, name: str) -> Policy:
    models = {"target": sidecar.upstream}
    bound, local = connect(load_policy(name), models, sidecar.detectors)
    sidecar.detectors.update(local.detectors)
    sidecar.scoring.local.detectors.update(local.detectors)
    return bound


# -- one question -------------------------------------------------------------------


def upstream(sidecar: Sidecar, key: str) -> OpenAIModel:
    """The upstream under the sidecar's key for it, or else one given; never the operator's own."""
    bearer = sidecar.settings.upstream_key or key
    return sidecar.upstream.bearing(f"Bearer {bearer}") if bearer else sidecar.upstream


async def put(sidecar: Sidecar, asked: Question) -> Exchange:
    """The question as a caller of the sidecar would put it."""
    parts: list[wire.Json] = [{"type": "text", "text": asked.question}]
    if asked.picture:
        parts.insert(0, {"type": "image_url", "image_url": {"url": asked.picture}})
    said: list[wire.Json] = [{"role": "user", "content": parts}]
    if asked.system:
        said.insert(0, {"role": "system", "content": asked.system})
    sent, seen = await inline(said, sidecar.fetch, sidecar.settings.images)
    options = {"model": asked.model, "max_tokens": asked.max_tokens}
    request = messages.parse(seen, options, fetch=refuse_path)
    return Exchange(upstream(sidecar, asked.key), {**options, "messages": sent}, request)


async def run(sidecar: Sidecar, exchange: Exchange, policy: Policy) -> Guarded:
    try:
        branch = Branch(exchange, 0, sidecar.scoring)
        return await drive.arun(guard(exchange.request, policy), branch)
    finally:
        exchange.leave()


def tell(exchange: Exchange, guarded: Guarded, ms: float) -> wire.Json:
    """What happened, in the form of a kept decision."""
    done = exchange.answer
    usage = wire.usage_of(guarded.usage)
    if done and done.done() and not done.cancelled() and done.exception() is None:
        usage = wire.add_usage(done.result()[1].get("usage"), guarded.usage)
    line = record(guarded, texts=True)
    spent = sum(finding.ms for finding in guarded.trail)
    tokens = {"prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]}
    top = {name: line.pop(name) for name in ("policy", "action", "decision", "step", "trail")}
    return {**top, **tokens, "detail": line, "ms": ms, "guard_ms": spent, "time": time.time()}


# -- sentence by sentence -------------------------------------------------------------


async def score(sidecar: Sidecar, policy: Policy, asked: Passage) -> list[wire.Json]:
    """Each sentence with the worst that the policy's detectors find in it."""
    spans = split(asked.text)[:MOST]
    found = await drive.arun(grade(policy, asked, spans), sidecar.scoring)
    if failed := next((finding for finding in found if finding.error), None):
        raise Refused(503, "guard_unavailable", f"{failed.detector} cannot score this now")
    return [
        {"start": s.start, "end": s.end, "text": asked.text[s.start : s.end], **describe(finding)}
        for s, finding in zip(spans, found, strict=True)
    ]


def grade(policy: Policy, asked: Passage, spans: list[Span]) -> Flow[list[Finding]]:
    case = Case(Request((Message("user", (Text(asked.question),)),)), policy)
    pieces = [asked.text[span.start : span.end] for span in spans]
    views = [grading.cheap(case, grading.as_answer(case, piece)) for piece in pieces]
    try:
        return (yield from grading.grade(case, "sentence", views))
    except StepError as exc:
        raise InputError(f"policy {policy.name!r}: {exc}") from exc
