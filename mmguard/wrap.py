"""`wrap`: a model in, the same model out, answering only what its policy lets through.

Takes conversations in the HuggingFace form or OpenAI's; gives `Guarded` values. Knows how
to start the drivers and nothing of what the flow decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mmguard import drive
from mmguard.errors import BatchError, InputError
from mmguard.guard import guard
from mmguard.messages import parse
from mmguard.runtime import AsyncModel, Concurrent, connect
from mmguard.types import Detector, Guarded, Model, Request

if TYPE_CHECKING:
    from mmguard.policy import Policy

    PolicySource: TypeAlias = str | Path | Mapping[str, Any] | Policy


def wrap(
    model: Any, processor: Any = None, policy: PolicySource = "balanced", **world: Any
) -> Wrapped:
    """A guarded model: a HuggingFace MLLM with its processor, or any `mmguard` model alone.

    `models=` and `detectors=` add what the policy names, by name; `timeout=` bounds one
    detector call in seconds. Raises `PolicyError` or `UnknownName` if the policy asks for
    what is not there.
    """
    if processor is None and not isinstance(model, Model):
        raise InputError(
            f"{type(model).__name__} needs its processor: wrap(model, processor, policy)"
        )
    if processor is not None:
        from mmguard.models.hf import HFModel

        model = HFModel(model, processor)
    return Wrapped(model, policy, **world)


class Wrapped:
    """One model under one policy."""

    def __init__(
        self,
        model: Model,
        policy: PolicySource = "balanced",
        *,
        models: Mapping[str, Model] | None = None,
        detectors: Mapping[str, Detector] | None = None,
        timeout: float | None = None,
    ) -> None:
        from mmguard.policy import load_policy

        named = {**(models or {}), "target": model}
        self.policy, self.runtime = connect(load_policy(policy), named, detectors, timeout=timeout)
        self.model = model
        self._loop: tuple[asyncio.AbstractEventLoop, Concurrent] | None = None

    def chat(self, messages: Any, **generation: Any) -> Guarded:
        """The guarded answer to one conversation.

        Raises `InputError` for a malformed one, and whatever the model itself raises.
        """
        flow = guard(parse(messages, generation), self.policy)
        # A server's whole reply holds more than its stream does.
        remote = isinstance(self.model, AsyncModel)
        return drive.run(drive.whole(flow) if remote else flow, self.runtime)

    def stream(self, messages: Any, **generation: Any) -> Generator[str, None, Guarded]:
        """Checked text as it comes; the `Guarded` is the generator's return value."""
        flow = guard(parse(messages, generation), self.policy, stream=True)
        return drive.stream(flow, self.runtime)

    def chat_many(self, conversations: Iterable[Any], **generation: Any) -> list[Guarded]:
        """Guarded answers in order, their model calls batched.

        Raises `BatchError`, which keeps the good rows, if some failed.
        """
        results = self.run_many(conversations, **generation)
        if any(isinstance(result, Exception) for result in results):
            raise BatchError(results)
        return [result for result in results if isinstance(result, Guarded)]

    def run_many(
        self, conversations: Iterable[Any], **generation: Any
    ) -> list[Guarded | Exception]:
        """`chat_many` with each failed row's exception in its place."""
        rows = [attempt(conversation, generation) for conversation in conversations]
        flows = [guard(row, self.policy) for row in rows if isinstance(row, Request)]
        done = iter(drive.run_many(flows, self.runtime))
        return [row if isinstance(row, Exception) else next(done) for row in rows]

    async def achat(self, messages: Any, **generation: Any) -> Guarded:
        """`chat` on an event loop; calls under way at once share the model's batches."""
        return await drive.arun(guard(parse(messages, generation), self.policy), self.loop)

    def astream(self, messages: Any, **generation: Any) -> AsyncGenerator[str | Guarded, None]:
        """Checked text as it comes, and last of all the `Guarded`."""
        flow = guard(parse(messages, generation), self.policy, stream=True)
        return drive.astream(flow, self.loop)

    @property
    def loop(self) -> Concurrent:
        """The runtime as the running event loop sees it."""
        running = asyncio.get_running_loop()
        if self._loop is None or self._loop[0] is not running:
            self._loop = (running, Concurrent(self.runtime))
        return self._loop[1]

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> list[Any]:
        """Called as transformers' `pipeline("image-text-to-text")` is; gives what it gives.

        Each result has a further field, `guarded`.
        """
        full = options.pop("return_full_text", True) is not False
        generation = {"max_new_tokens": 256, **options.pop("generate_kwargs", {}), **options}
        shown, rows, single = read_call(images, text)
        answers = self.chat_many(rows, **generation)
        results = [[present(*row, full)] for row in zip(shown, answers, strict=True)]
        return results[0] if single else results


def read_call(images: Any, text: Any) -> tuple[list[Any], list[Any], bool]:
    """A pipeline's arguments as (what to show as input, conversations, whether it is one row)."""
    if text is None and is_chat(images):
        images, text = None, images
    if not is_chat(text):
        single = not isinstance(text, list | tuple)
        made = pair(images, text)
        return ([text], [made], True) if single else (list(text), made, False)
    if images is not None:
        raise InputError("put the pictures into the messages, not beside them")
    single = isinstance(text[0], Mapping)
    rows = [text] if single else list(text)
    return rows, rows, single


def attempt(conversation: Any, generation: Mapping[str, Any]) -> Request | Exception:
    try:
        return parse(conversation, generation)
    except Exception as exc:
        return exc


def is_chat(given: Any) -> bool:
    """Whether this is one conversation or a list of them, rather than text or pictures."""
    return (
        isinstance(given, Sequence)
        and len(given) > 0
        and not isinstance(given, str)
        and isinstance(given[0], list | tuple | Mapping)
    )


def pair(images: Any, text: Any) -> Any:
    """One user message of pictures and words, or one for each row."""
    if text is None:
        raise InputError("give text, or messages with their pictures inside")
    if not isinstance(text, list | tuple):
        pictures = images if isinstance(images, list | tuple) else [images]
        return [user_message([p for p in pictures if p is not None], text)]
    pictures = images if images is not None else [None] * len(text)
    if not isinstance(pictures, list | tuple) or len(pictures) != len(text):
        raise InputError(f"{len(text)} texts need as many pictures, or lists of pictures")
    return [pair(picture, words) for picture, words in zip(pictures, text, strict=True)]


def user_message(pictures: Iterable[Any], text: str) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def present(given: Any, guarded: Guarded, full: bool) -> dict[str, Any]:
    made: Any = guarded.text
    if full and isinstance(given, str):
        made = given + guarded.text
    elif full:
        made = [*given, {"role": "assistant", "content": guarded.text}]
    return {"input_text": given, "generated_text": made, "guarded": guarded}
