"""Items in, guarded answers out: a model of this process in batches, a server's calls at once.

Both take a few items at a time from the input and give each back with its answer or failure,
so that memory does not grow with the input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from mmguard.batch.items import Item
from mmguard.runtime import AsyncModel
from mmguard.types import Guarded
from mmguard.wrap import Wrapped

Answered = tuple[Item, Guarded | Exception]


def answer(
    wrapped: Wrapped, items: Iterable[Item], size: int, options: Mapping[str, Any]
) -> Iterator[list[Answered]]:
    """Answers as they are there, some at a time. `size` items are under way at once."""
    if isinstance(wrapped.model, AsyncModel):
        return at_once(wrapped, items, size, options)
    return in_batches(wrapped, items, size, options)


def in_batches(
    wrapped: Wrapped, items: Iterable[Item], size: int, options: Mapping[str, Any]
) -> Iterator[list[Answered]]:
    """In lockstep: only the items in need go on to the next step, together."""
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        found = wrapped.run_many((item.request for item in batch), **options)
        yield list(zip(batch, found, strict=True))


def at_once(
    wrapped: Wrapped, items: Iterable[Item], size: int, options: Mapping[str, Any]
) -> Iterator[list[Answered]]:
    """Every item for itself, the next one as soon as any is answered."""

    async def one(item: Item) -> Answered:
        try:
            return item, await wrapped.achat(item.request, **options)
        except Exception as exc:
            return item, exc

    waiting, flying = iter(items), set[asyncio.Task[Answered]]()

    async def turn() -> list[Answered]:
        nonlocal flying
        for item in islice(waiting, size - len(flying)):
            flying.add(asyncio.ensure_future(one(item)))
        if not flying:
            return []
        done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
        return [task.result() for task in done]

    with asyncio.Runner() as runner:
        try:
            while found := runner.run(turn()):
                yield found
        finally:
            runner.run(leave(flying, wrapped.model))


async def leave(flying: set[asyncio.Task[Answered]], model: Any) -> None:
    """Nobody waits for these any more; the model's connections belong to this loop."""
    for task in flying:
        task.cancel()
    await asyncio.gather(*flying, return_exceptions=True)
    if (client := getattr(model, "aclient", None)) is not None:
        await client.aclose()
