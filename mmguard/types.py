"""The values that travel through a flow: frozen, without identity, without I/O.

They know nothing of models, detectors or wires. A score is always p(unsafe).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

Action = Literal["pass", "repair", "block"]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
SEVERITY: Mapping[Action, int] = {"pass": 0, "repair": 1, "block": 2}
# The name under which a model, asked the judge's question, counts as a detector.
JUDGE = "judge"
# The target model itself, asked the judge's question: what ECSO does.
SELF = "self"

# What shapes an answer but cannot carry its subject: all that an eyes-closed request keeps.
SAMPLING = frozenset(
    {
        "do_sample",
        "eos_token_id",
        "frequency_penalty",
        "generation_config",
        "length_penalty",
        "logprobs",
        "max_length",
        "max_completion_tokens",
        "max_new_tokens",
        "max_tokens",
        "min_length",
        "min_new_tokens",
        "min_p",
        "no_repeat_ngram_size",
        "num_beams",
        "presence_penalty",
        "reasoning_effort",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_strings",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
        "typical_p",
        "user",
    }
)


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """One picture, as the encoded bytes that are checked and that the model gets."""

    data: bytes = field(repr=False)
    mime: str = "image/png"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A part that nobody here can read: audio, video, a file, an unreachable URL."""

    kind: str
    raw: Any = field(default=None, repr=False)


Part = Text | Image | Opaque


@dataclass(frozen=True, slots=True)
class Message:
    """A role and its parts; `extra` keeps wire fields such as `tool_calls`."""

    role: Role
    parts: tuple[Part, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True)
class Request:
    """A conversation, and every field of the caller's body that mmguard leaves alone."""

    messages: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """All words of all messages, in order."""
        return "\n".join(text for message in self.messages if (text := message.text))

    @cached_property
    def query(self) -> str:
        """The words of the user's last turn: what is asked now."""
        turns = (m.text for m in reversed(self.messages) if m.role == "user")
        return next(turns, "")

    @cached_property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts() if isinstance(part, Image))

    @cached_property
    def opaque(self) -> tuple[Opaque, ...]:
        return tuple(part for part in self.parts() if isinstance(part, Opaque))

    def parts(self) -> Iterator[Part]:
        return (part for message in self.messages for part in message.parts)


# A picture spelled out in words is a picture all the same.
SPELLED = re.compile(r"data:image/[^\s\"'<>()\[\]{}]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TextMessage:
    """A message that has no room for anything but words; a data URI of a picture is none."""

    role: Role
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", SPELLED.sub("(a picture)", self.text))

    @property
    def parts(self) -> tuple[Text]:
        return (Text(self.text),)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A conversation with eyes closed: no field of it can hold a picture."""

    messages: tuple[TextMessage, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in self.options.items() if name in SAMPLING}
        object.__setattr__(self, "options", kept)

    @property
    def images(self) -> tuple[()]:
        return ()


AnyRequest = Request | TextRequest


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a model read and wrote; `cached` of those read were known from before."""

    prompt: int = 0
    completion: int = 0
    cached: int = field(default=0, compare=False)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered. `first` holds probabilities of its first token, if asked for."""

    text: str
    finish: str = "stop"
    usage: Usage = Usage()
    first: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[int, ...] = field(default=(), compare=False, repr=False)
    raw: Any = field(default=None, compare=False, repr=False)
    ms: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a detector sees: a request, and the reply to it once there is one."""

    request: Request
    reply: str | None = None

    @property
    def chars(self) -> int:
        return len(self.request.text) + len(self.reply or "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One detector's verdict on one sample, and what the policy made of it.

    A detector fills `score` (p(unsafe), 0 to 1), `label`, `categories` (name to score),
    `reason` (short, no user text) and what it looked at: `images` and `chars`.
    The flow adds `stage`, `threshold` and `action`.
    """

    detector: str
    score: float
    label: str = ""
    categories: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    images: int = 0
    chars: int = 0
    stage: str = ""
    threshold: float | None = None
    action: Action = "pass"
    ms: float = field(default=0.0, compare=False)

    @property
    def category(self) -> str:
        """The category with the highest score; of equals the first by name."""
        return min(self.categories, key=lambda name: (-self.categories[name], name), default="")


@dataclass(frozen=True, slots=True)
class Call:
    """One model call of a flow: at which stage, by which model, with what reply."""

    stage: str
    model: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much the checks looked at: pictures of the request, characters of the last sample."""

    images: int = 0
    images_total: int = 0
    chars: int = 0
    chars_total: int = 0
    opaque: int = 0


@dataclass(frozen=True, slots=True)
class Guarded:
    """The answer that may leave, and how it came about.

    `action` is what was done, `decision` what the checks asked for: they differ under
    `mode: audit` only. `step` names where the text comes from: `answer`, a repair step,
    or, for a block, `input`, `output` or `cut`. `closed` says that the answer was made
    without the picture.
    """

    text: str
    action: Action
    step: str
    trail: tuple[Finding, ...] = ()
    coverage: Coverage = Coverage()
    calls: tuple[Call, ...] = ()
    decision: Action = "pass"
    finish: str = "stop"
    policy: str = ""
    closed: bool = False

    @property
    def draft(self) -> Reply | None:
        """What the target model answered before any repair; `None` if it was never asked."""
        return next((call.reply for call in self.calls if call.stage == "draft"), None)

    @property
    def usage(self) -> Usage:
        """Tokens of every model call that this answer took."""
        return sum((call.reply.usage for call in self.calls), Usage())


@runtime_checkable
class Detector(Protocol):
    """Anything that scores. `thresholds` maps `low`, `medium`, `high` to scores.

    One that gains nothing from several rows in a call may say by a number `at_once` how many
    calls it takes at the same time: a server then makes these, a row each, and no batches.
    """

    name: str
    thresholds: Mapping[str, float]

    def score(self, samples: Sequence[Sample]) -> Sequence[Finding]:
        """One finding a sample, in order."""
        ...


@runtime_checkable
class Model(Protocol):
    """Anything that answers.

    Options carry OpenAI's names (`max_tokens`, `temperature`, `seed`, `stop`, `logprobs`, ...).
    """

    name: str

    def generate(self, requests: Sequence[AnyRequest]) -> Sequence[Reply]:
        """One reply a request, in order."""
        ...

    def stream(self, request: AnyRequest) -> Iterator[str | Reply]:
        """Pieces of text as they come, then the whole `Reply`."""
        ...
