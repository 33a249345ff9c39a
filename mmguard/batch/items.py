"""A row of any of the usual shapes as a conversation to answer.

`messages` (OpenAI's, TRL's), `conversations` (LLaVA's, ShareGPT's) or a `prompt`; pictures in
their places, or in `image` or `images` beside them. Answers at the end are left out: they are
what is to be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmguard.errors import InputError
from mmguard.media import Fetch, load_image
from mmguard.messages import IMAGE_KINDS, parse
from mmguard.rows import Row
from mmguard.types import Image, Request

PROMPTS = ("prompt", "question", "instruction", "query", "text")
# Who speaks, in the words of ShareGPT and LLaVA.
SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
MARK = "<image>"
# What a row says of itself, kept beside its answer.
FACTS = ("source", "license", "category", "language", "prompt_harm", "meta")
Turn = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One conversation to answer: its row's number from 1, and what the row says of itself."""

    number: int
    request: Request
    facts: Mapping[str, Any]


def make_item(number: int, row: Row, fetch: Fetch, facts: Mapping[str, Any]) -> Item:
    """The item of a row; `fetch` reads a picture by its name, `facts` are what the row lacks.

    Raises `InputError` or `ImageError` that says what is wrong with it.
    """
    turns = list(read_turns(row))
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()
    if not turns:
        raise InputError("the row asks nothing: give messages, conversations or a prompt")
    pictures = [load(source, fetch) for source in read_pictures(row)]
    request = parse(list(place(turns, pictures)), fetch=fetch)
    if request.opaque:
        kinds = ", ".join(sorted({part.kind for part in request.opaque}))
        raise InputError(f"nobody here can read parts of the kind: {kinds}")
    told = {name: row[name] for name in FACTS if row.get(name) not in (None, "")}
    return Item(number, request, {**facts, **told})


def read_turns(row: Row) -> Iterator[Turn]:
    if isinstance(found := row.get("messages"), list):
        yield from (turn if isinstance(turn, Mapping) else {} for turn in found)
    elif isinstance(found := row.get("conversations"), list):
        yield from (read_turn(turn) for turn in found)
    else:
        name = next((name for name in PROMPTS if row.get(name)), None)
        if name is None:
            return
        if isinstance(row[name], list):
            yield from row[name]
        elif isinstance(row[name], str):
            yield {"role": "user", "content": row[name]}
        else:
            raise InputError(f"{name} must be text or turns, not {type(row[name]).__name__}")


def read_turn(turn: Any) -> Turn:
    who = turn.get("from", turn.get("role")) if isinstance(turn, Mapping) else None
    if who not in SPEAKERS and who != "system":
        raise InputError(f"conversations speak as human and gpt, not as {who!r}")
    return {"role": SPEAKERS.get(who, who), "content": turn.get("value", turn.get("content"))}


def read_pictures(row: Row) -> list[Any]:
    found = row.get("images", row.get("image"))
    if found is None or found == "":
        return []
    return list(found) if isinstance(found, list | tuple) else [found]


def load(source: Any, fetch: Fetch) -> Image:
    """A picture from a name, a data URI, bytes, or a row's `bytes` and `path`."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path") or source.get("url")
    return load_image(source, fetch)


# -- pictures in their places ---------------------------------------------------


def place(turns: Sequence[Turn], pictures: Sequence[Image]) -> Iterator[Turn]:
    """The turns with each picture where a mark asks for it, or else before the first question."""
    waiting = list(reversed(pictures))
    made = [fill(turn, waiting) for turn in turns] if pictures else list(turns)
    first = next((i for i, turn in enumerate(made) if turn.get("role") == "user"), None)
    if waiting and len(waiting) < len(pictures):
        raise InputError(f"{len(pictures)} pictures, and places for {len(pictures) - len(waiting)}")
    if waiting and first is None:
        raise InputError("pictures, and no turn of the user that they belong to")
    for i, turn in enumerate(made):
        if waiting and i == first:
            turn = {**turn, "content": [*pictures, *parts(turn.get("content"))]}
        yield turn


def fill(turn: Turn, waiting: list[Image]) -> Turn:
    """The turn, the next pictures in the places of its marks."""
    made: list[Any] = []
    for part in parts(turn.get("content")):
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and empty(part):
            made.append(take(waiting))
        elif isinstance(text, str) and MARK in text:
            made += weave(text.split(MARK), waiting)
        else:
            made.append(part)
    return {**turn, "content": made}


def weave(texts: Sequence[str], waiting: list[Image]) -> Iterator[Any]:
    """A picture between each two texts; line ends around marks are the form's, not the text's."""
    for i, text in enumerate(texts):
        if i:
            yield take(waiting)
        if text := text.strip("\n"):
            yield {"type": "text", "text": text}


def take(waiting: list[Image]) -> Image:
    if not waiting:
        raise InputError("more places for pictures than pictures")
    return waiting.pop()


def empty(part: Mapping[str, Any]) -> bool:
    """Whether this is the place of a picture that stands elsewhere."""
    named = ("image", "image_url", "url", "path", "base64")
    return part.get("type") in IMAGE_KINDS and not any(part.get(name) for name in named)


def parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list | tuple) else []
