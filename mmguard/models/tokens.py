"""From tokens to text: whole, or as far as a stream may let it out.

What a stream lets out is always a beginning of the whole text: the end of it that a later
token could change is held back. Knows tokenizers and nothing of models.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from mmguard.clock import abandoned
from mmguard.models.options import cut, held

# A token of one byte: what it reads as depends on the bytes after it.
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BROKEN = "\N{REPLACEMENT CHARACTER}"
# From the first token's logits, a row each: whether the row needs no more.
Settled = Callable[[Any], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A tokenizer's text without special tokens, up to the first stop string."""

    tokenizer: Any
    stop: tuple[str, ...] = ()

    def decode(self, tokens: Sequence[int]) -> str:
        # A clean-up of spaces changes what is already out: streams and wholes do without.
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def read(self, tokens: list[int], ends: frozenset[int]) -> tuple[str, str, tuple[int, ...]]:
        """The text, why it ended (`stop` or `length`), and the tokens that are its own.

        After the end come a batch's pads.
        """
        closed = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
        tokens = tokens[:closed]
        text, stopped = cut(self.decode(tokens), self.stop)
        if stopped:
            sizes = range(len(tokens))
            tokens = tokens[: bisect(sizes, False, key=lambda n: self.stops(tokens[:n]))]
        return text, "stop" if closed or stopped else "length", tuple(tokens)

    def stops(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string is among these tokens."""
        return bool(self.stop) and cut(self.decode(tokens), self.stop)[1]

    def sure(self, tokens: Sequence[int]) -> str:
        """As much of the text as no later token can change."""
        end = len(tokens)
        while end and self.unsettled(tokens[end - 1]):
            end -= 1
        text, stopped = cut(self.decode(tokens[:end]), self.stop)
        if stopped:
            return text
        # Half a character, or half a stop string, may yet become something else.
        text = text.rstrip(BROKEN)
        return text[: len(text) - held(text, self.stop)]

    def unsettled(self, token: int) -> bool:
        """Whether the text before this token may still change: after a byte, or nothing."""
        byte = BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token)))
        return byte is not None or not self.decode([token])


class Stop:
    """What transformers calls a stopping criterion: a stop string, or a reader who has gone,
    waits no more, or to whom the first token says it all.

    Transformers' own looks for stop strings in the prompt too, takes a second to learn a
    large vocabulary, and refuses strings that are not made of its tokens.
    """

    def __init__(
        self, spelling: Spelling, gone: Event | None = None, settled: Settled | None = None
    ) -> None:
        self.spelling, self.gone, self.settled = spelling, gone, settled
        self.start: int | None = None
        # No character takes more than four tokens; a few more may be special ones.
        self.window = 8 + 4 * max(map(len, spelling.stop), default=0)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        if self.start is None:
            self.start = input_ids.shape[1] - 1
        done = [abandoned() or bool(self.gone and self.gone.is_set())] * len(input_ids)
        if self.spelling.stop and not done[0]:
            recent = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :]
            done = [self.spelling.stops(row) for row in recent.tolist()]
        if self.settled and self.start == input_ids.shape[1] - 1:
            done = [one or other for one, other in zip(done, self.settled(scores[0]), strict=True)]
        return torch.tensor(done, device=input_ids.device)


class Sink:
    """What transformers calls a streamer: it sends on what is sure. The prompt comes first."""

    def __init__(self, send: Callable[[str], None], spelling: Spelling) -> None:
        self.send, self.spelling = send, spelling
        self.tokens: list[int] | None = None
        self.sent = ""

    def put(self, value: Any) -> None:
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += value.reshape(-1).tolist()
        self.finish(self.spelling.sure(self.tokens))

    def finish(self, text: str) -> None:
        """Sends what this text has beyond what is sent."""
        if len(text) > len(self.sent) and text.startswith(self.sent):
            self.send(text[len(self.sent) :])
            self.sent = text

    def end(self) -> None:
        """The model has no more tokens; whoever asked it has the whole text."""
