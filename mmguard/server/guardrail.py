"""LiteLLM's generic guardrail: the flow's verdict on what passes through that gateway.

A request is screened as the flow screens it. An answer is guarded as if the target had just
said it, so that the policy's repairs apply; they ask the sidecar's own upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request as Call
from fastapi.responses import JSONResponse, Response

from mmguard import drive, guard, messages
from mmguard.asks import Flow
from mmguard.case import Case
from mmguard.drive import AsyncPieces
from mmguard.errors import ImageError, InputError, OversizeError
from mmguard.guard import refuse, screen
from mmguard.models.openai import OpenAIModel
from mmguard.policy import Policy
from mmguard.server import wire
from mmguard.server.failures import demand
from mmguard.server.intake import find, inline, locate
from mmguard.server.sidecar import Sidecar, refuse_path
from mmguard.server.spans import watched
from mmguard.server.watch import Scoring
from mmguard.types import (
    AnyRequest,
    Finding,
    Guarded,
    Image,
    Message,
    Opaque,
    Reply,
    Request,
    Sample,
    Text,
)

PATH = "/beta/litellm_basic_guardrail_api"
Verdicts = tuple[list[Guarded], wire.Json]


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post(PATH)
    async def guardrail(call: Call) -> Response:
        body = await sidecar.body(call)
        policy = sidecar.policy(call, body)
        model = sidecar.forward(call).named(str(body.get("model") or "default"))
        side = str(body.get("input_type"))
        if side not in SIDES:
            raise InputError(f"input_type={side!r}: give one of {', '.join(SIDES)}")
        world = Given("", model, sidecar.scoring)
        found, made = await SIDES[side](Reader(sidecar, body), policy, world)
        return JSONResponse(made, headers=wire.headers(found))

    return router


class Given:
    """A world in which the target has just said `text`; all else is asked of a server."""

    def __init__(self, text: str, model: OpenAIModel, detectors: Scoring) -> None:
        self.text, self.model, self.detectors = text, model, detectors
        self.request: AnyRequest | None = None

    def saying(self, text: str, request: Request) -> Given:
        """The same world with a draft to this request."""
        other = Given(text, self.model, self.detectors)
        other.request = request
        return other

    async def generate(self, model: str, request: AnyRequest) -> Reply:
        if request is self.request:
            return Reply(self.text)
        return await self.detectors.ask(model, self.model, request)

    async def score(self, detector: str, sample: Sample) -> Finding:
        return await self.detectors.score(detector, sample)

    def open(self, model: str, request: AnyRequest) -> AsyncPieces:
        return self.detectors.read(model, self.model, request)


# -- requests -----------------------------------------------------------------


async def judge_request(reader: Reader, policy: Policy, world: Given) -> Verdicts:
    """Blocked if the policy would block the request, or keep the target from answering it."""
    known = await reader.messages()
    requests = [known, Request((await reader.beside(known),))]
    requests = [request for request in requests if any(request.parts())]
    found = await run_all([(screened(request, policy), world) for request in requests])
    return found, blocked(found) or {"action": "NONE"}


def screened(request: Request, policy: Policy) -> Flow[Guarded]:
    """The flow as far as its screen: nobody is asked to answer."""
    case = Case(request, policy)
    if (yield from screen(case)) == "pass":
        return case.close("pass", "input")
    return (yield from refuse(case, "input"))


# -- answers ------------------------------------------------------------------


async def judge_answer(reader: Reader, policy: Policy, world: Given) -> Verdicts:
    """Each text by the whole flow; tool calls and pictures by as much of it as applies to them."""
    request, body = await reader.messages(), reader.body
    texts = read_list(body, "texts")
    # What was asked has been let through; a call of a tool cannot be reworded.
    late = policy.model_copy(update={"input": (), "unreadable": "pass"})
    # The answer is there, whole: nothing is saved by ending it early, and more can be mended.
    late.__dict__["running"] = ()
    rigid = late.model_copy(update={"repair": ()})
    flows = [(guard(request, late), world.saying(text, request)) for text in texts]
    if calls := wire.text_of({"tool_calls": body.get("tool_calls") or []}):
        flows.append((guard(request, rigid), world.saying(calls, request)))
    if drawn := read_list(body, "images"):
        shown = Request((Message("assistant", (Opaque("image"),) * len(drawn)),))
        flows.append((screened(shown, policy.model_copy(update={"input": ()})), world))
    found = await run_all(flows)
    if refusal := blocked(found):
        return found, refusal
    mended = [guarded.text for guarded in found[: len(texts)]]
    if mended == texts:
        return found, {"action": "NONE"}
    return found, {"action": "GUARDRAIL_INTERVENED", "texts": mended}


SIDES: Mapping[str, Callable[[Reader, Policy, Given], Awaitable[Verdicts]]]
SIDES = {"request": judge_request, "response": judge_answer}


async def run_all(flows: Sequence[tuple[Flow[Guarded], Given]]) -> list[Guarded]:
    """All verdicts. Raises `Refused` where one is due to a failed detector."""
    numbered = enumerate(flows)
    found = await asyncio.gather(*(drive.arun(watched(f, i), world) for i, (f, world) in numbered))
    for guarded in found:
        demand(guarded)
    return found


def blocked(found: Sequence[Guarded]) -> wire.Json | None:
    refusal = next((guarded.text for guarded in found if guarded.action == "block"), None)
    return None if refusal is None else {"action": "BLOCKED", "blocked_reason": refusal}


# -- reading ------------------------------------------------------------------


class Reader:
    """A gateway's body as requests. A picture by URL that may not be fetched is opaque."""

    def __init__(self, sidecar: Sidecar, body: wire.Json) -> None:
        self.sidecar, self.body = sidecar, body

    async def messages(self) -> Request:
        """The conversation in OpenAI's form, if the gateway has one."""
        given, most = self.body.get("structured_messages") or [], self.sidecar.settings.images
        if not isinstance(given, list):
            raise InputError("structured_messages: give a list of messages, or leave it out")
        if not given:
            return Request(())
        links = {url for message in given for part in find(message) if is_link(url := locate(part))}
        known = dict(zip(links, await self.pictures(links), strict=True))
        dead = [url for url, part in known.items() if isinstance(part, Opaque)]

        async def fetch(url: str) -> Image:
            found = known.get(url)
            return found if isinstance(found, Image) else await self.sidecar.fetch(url)

        _, seen = await inline([bury(message, dead) for message in given], fetch, most)
        return messages.parse(seen, fetch=refuse_path)

    async def beside(self, known: Request) -> Message:
        """What the gateway lists beside the conversation, or without one: texts and pictures."""
        texts = [Text(t) for t in read_list(self.body, "texts") if t and t not in known.text]
        pictures = await self.pictures(read_list(self.body, "images"))
        seen = {image.data for image in known.images}
        new = (p for p in pictures if isinstance(p, Opaque) or p.data not in seen)
        return Message("user", (*new, *texts))

    async def pictures(self, given: Collection[str]) -> list[Image | Opaque]:
        most = self.sidecar.settings.images
        if len(given) > most:
            raise ImageError(f"{len(given)} pictures: send at most {most} in one request")
        return await asyncio.gather(*map(self.picture, given))

    async def picture(self, given: str) -> Image | Opaque:
        """A picture from a data URI, bare base64 or a URL."""
        if not is_link(given):
            is_uri = given[:5].lower() == "data:"
            return await self.sidecar.fetch(given if is_uri else f"data:;base64,{given}")
        try:
            return await self.sidecar.fetch(given)
        except OversizeError:
            raise
        except ImageError:
            return Opaque("link")


def bury(message: Any, dead: Collection[str]) -> Any:
    """A message in which these pictures are parts that nobody can read."""
    lost = [id(part) for part in find(message) if locate(part) in dead]
    if not lost:
        return message
    parts = [{"type": "link"} if id(part) in lost else part for part in message["content"]]
    return {**message, "content": parts}


def is_link(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def read_list(body: wire.Json, name: str) -> list[str]:
    given = body.get(name) or []
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise InputError(f"{name}: give a list of strings, or leave it out")
    return given
