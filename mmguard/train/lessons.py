"""What a language model is taught: a conversation's start and the answer that should follow.

Token ids in batches of about equal lengths, all drawn from the seed before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Lesson:
    """What the user says, and the answer to learn, which is `whole` unless it was cut off.

    What is `held` is not taught: it measures.
    """

    prompt: str
    answer: str
    source: str = ""
    whole: bool = True
    held: bool = False


@dataclass(frozen=True)
class Line:
    """A lesson as token ids; `start` is where the answer begins."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Limits:
    """The most tokens of a prompt and of an answer; a longer answer is learnt without its end."""

    prompt: int = 300
    answer: int = 64


def line(lesson: Lesson, tokenizer: Any, limits: Limits) -> Line | None:
    """The lesson in the model's own chat form; `None` if its prompt is too long."""
    asked = chat(tokenizer, lesson.prompt)
    if len(asked) > limits.prompt:
        return None
    said = tokenizer(lesson.answer.strip(), add_special_tokens=False)["input_ids"]
    ends = lesson.whole and len(said) < limits.answer
    said = [*said, tokenizer.eos_token_id] if ends else said[: limits.answer]
    return Line((*asked, *said), len(asked))


def chat(tokenizer: Any, prompt: str) -> list[int]:
    turns = [{"role": "user", "content": prompt}]
    made = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return list(made["input_ids"])


def batches(lines: Sequence[Line], tokens: int, draw: Random) -> list[list[Line]]:
    """Batches of like lengths with at most `tokens` places each, in a drawn order."""
    made: list[list[Line]] = [[]]
    for item in sorted(lines, key=lambda item: (len(item.ids), item.ids)):
        if made[-1] and len(item.ids) * (len(made[-1]) + 1) > tokens:
            made.append([])
        made[-1].append(item)
    draw.shuffle(made)
    return [batch for batch in made if batch]


def collate(batch: Sequence[Line]) -> tuple[Tensor, Tensor]:
    """Ids and the ids to be foretold, both of shape (rows, longest)."""
    width = max(len(item.ids) for item in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    wanted = torch.full((len(batch), width), IGNORED)
    for row, item in enumerate(batch):
        size = len(item.ids)
        ids[row, :size] = torch.tensor(item.ids)
        wanted[row, item.start - 1 : size - 1] = ids[row, item.start : size]
    return ids, wanted
