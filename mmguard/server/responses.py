"""OpenAI's responses before a server that speaks them: guarded whole or streamed.

Only answers that are waited for here are guarded, so none is made in the background, and none
that the upstream remembers is fetched again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request as Call
from fastapi.responses import Response

from mmguard import sse
from mmguard.errors import ImageError, InputError, ModelError
from mmguard.models.openai import load
from mmguard.server import intake, items, wire
from mmguard.server.events import Teller
from mmguard.server.exchange import Branch, Feed
from mmguard.server.failures import Refused, tell
from mmguard.server.form import Form
from mmguard.server.heard import Heard
from mmguard.server.sidecar import Sidecar
from mmguard.server.speech import Speech
from mmguard.server.talk import Talk, Whole, answered, counted
from mmguard.types import AnyRequest, Guarded, Reply, Usage

FORM = Form(
    "responses",
    "response",
    "response",
    lambda choice: choice["said"],
    lambda choice: choice["said"],
    wire.mend,
    dict,
)
ENDS = ("response.completed", "response.incomplete", "response.failed")


def routes(sidecar: Sidecar) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses")
    async def responses(call: Call) -> Response:
        talk = await open_talk(sidecar, call, await sidecar.read(call))
        policy = sidecar.policy(call, talk.body)
        talk.strict = policy.unreadable == "block" and policy.mode == "enforce"
        return await answered(sidecar, call, policy, talk, broken)

    @router.post("/v1/responses/input_tokens")
    async def count(call: Call) -> Response:
        talk = await open_talk(sidecar, call, await sidecar.read(call))
        sidecar.policy(call, talk.body)
        return await counted(sidecar, call, talk, "responses/input_tokens")

    @router.api_route(
        "/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False
    )
    async def stored(call: Call, rest: str) -> Response:
        sidecar.policy(call)
        told = "only new responses are served: what the upstream has stored would leave unchecked"
        raise Refused(404, "invalid_request_error", told, code="not_served")

    return router


async def open_talk(sidecar: Sidecar, call: Call, data: bytes) -> Answer:
    """The body as values, its pictures fetched and inlined; without such, as it came."""
    body = wire.load(data)
    agree(body)
    found, most = list(items.pictures(body)), sidecar.settings.images
    if len(found) > most:
        raise ImageError(f"{len(found)} pictures: send at most {most} in one request")
    addresses = [intake.locate(part) for part in found]
    images = await asyncio.gather(*map(sidecar.fetch, addresses))
    known = {id(part): image for part, image in zip(found, images, strict=True)}
    request, sent = items.read(body, known), items.enclose(body, known)
    talk = Answer(sidecar.forward(call), sent, request, FORM)
    if sent == body and wire.plain(data):
        talk.content = data
    talk.in_content = sidecar.settings.refusal_in_content and items.is_plain(body)
    return talk


def agree(body: Mapping[str, Any]) -> None:
    """Raises `InputError` for what cannot be guarded."""
    if body.get("background"):
        told = "its answer would be fetched later, unchecked; wait for it, or stream it"
        raise InputError(f"background={body['background']!r}: {told}")
    if str(body.get("previous_response_id")).startswith(items.MARK):
        told = "this answer was mended or withheld here, and the upstream does not have it; go on"
        raise InputError(f"previous_response_id: {told} from the one before, or send the items")


class Answer(Talk):
    """An exchange whose one choice is the upstream's response."""

    strict = in_content = True

    def take(self, answer: wire.Json) -> wire.Json:
        if not isinstance(answer.get("output"), list):
            raise ModelError("the server's response has no output", body=wire.dump(answer))
        heard = Heard(self.body)
        said = heard.whole(answer)
        self.allow(heard)
        return {"message": answer, "said": said, "finish_reason": items.ending(answer)}

    def allow(self, heard: Heard) -> None:
        """Raises `Refused` for a picture or a sound, which nobody here can look at."""
        if heard.sealed and self.strict:
            told = f"the upstream sent what nobody here can look at: {heard.sealed}"
            raise Refused(502, "upstream_error", told, code="unreadable")

    def tokens(self, answer: Mapping[str, Any]) -> Usage:
        return items.read_usage(answer)

    def empty(self) -> wire.Json:
        return items.empty(self.body)

    def mend(self, answer: wire.Json, guarded: Guarded) -> wire.Json:
        return items.mend(answer, guarded, self.body, self.in_content)

    def model(self) -> Responses:
        return Responses(self.upstream, self)

    def listen(self, branch: Branch) -> tuple[Feed, Speech]:
        feed = Events(self, branch)
        return feed, Teller(branch, feed, self.in_content)


class Responses(Whole):
    """The upstream as whoever mends."""

    def write(self, request: AnyRequest) -> wire.Json:
        return items.write(request, str(self.talk.body.get("model", "")))

    def read(self, answer: wire.Json) -> Reply:
        if not isinstance(answer.get("output"), list):
            raise ModelError("the server's response has no output", body=wire.dump(answer))
        if answer.get("status") == "failed":
            raise ModelError(f"the server failed: {answer.get('error')}", body=wire.dump(answer))
        finish = items.ending(answer) or "stop"
        return Reply(items.spoken(answer), finish, items.read_usage(answer))


# -- streamed -----------------------------------------------------------------


def broken(exc: Exception) -> bytes:
    """How a stream ends that fails after its head, in a form that no client takes for an end."""
    _, body, _ = tell(exc)
    told = body.get("error") if isinstance(body, dict) else None
    known = told if isinstance(told, dict) else {}
    more = {name: known.get(name) for name in ("code", "message", "param")}
    return items.event("error", **more, sequence_number=0, error=known)


class Events(Feed):
    """The upstream's events, each with what it says; `first` is the response so far."""

    def __init__(self, talk: Answer, branch: Branch) -> None:
        super().__init__(talk, [branch])
        self.talk, self.heard = talk, Heard(talk.body)

    def sort(self, event: sse.Event) -> None:
        told = load(event.data)
        if told.get("type") == "error" or "type" not in told:
            raise ModelError(f"the stream broke off: {told}", body=event.data)
        said, finish, response = self.heard.take(told), "", told.get("response")
        self.talk.allow(self.heard)
        if isinstance(response, dict):
            self.first = response
            if told["type"] in ENDS:
                finish = items.ending(response) or "stop"
                spent = wire.usage_of(items.read_usage(response))
                self.asides.append((b"", {"usage": spent}))
        self.put(event, said, finish)

    def close(self, event: sse.Event) -> None:
        self.put(event, {}, "")

    def put(self, event: sse.Event, said: wire.Json, finish: str) -> None:
        choice = {"said": said, "finish_reason": finish}
        self.branches[0].queue.put_nowait((event.raw, choice))
