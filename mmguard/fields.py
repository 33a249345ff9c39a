"""The fields of a policy that stand by themselves: judge, repair steps, stream and prompts.

Each is frozen and refuses what it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mmguard import prompts

Word = Literal["low", "medium", "high"]


def read_strictness(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if number or value in get_args(Word):
        return value
    raise ValueError("no strictness; use low, medium, high or a number from 0 to 1")


Strictness = Annotated[Word | float, BeforeValidator(read_strictness)]
Share = Annotated[float, Field(gt=0, le=1)]


def contradict(*where: str | int, value: Any, fix: str) -> PydanticCustomError:
    """An error about one field, found when looking at several."""
    context = {"where": where, "value": value, "fix": fix}
    return PydanticCustomError("contradiction", "{fix}", context)


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Judge(Strict):
    """A model that is asked whether an answer is harmful, with or without the picture.

    `trigger` is how its reply is read: the chance of a yes, or the bare word, where all
    else means no. `chars` is how much of the answer it is shown.
    """

    model: str
    image: bool = True
    strictness: Strictness = "medium"
    trigger: Literal["chance", "word"] = "chance"
    chars: Annotated[int, Field(ge=1)] | None = None


class Caption(Strict):
    """Eyes closed: who describes the pictures, and in at most how many tokens.

    `together` asks for one description of all pictures, else each has its own. `check`
    has the description pass the policy's checks, sentence by sentence if it must.
    """

    model: str = "target"
    max_tokens: Annotated[int, Field(ge=1)] = 128
    together: bool = False
    check: bool = True


class Excise(Strict):
    """How much of an answer may be cut out, how safe the rest must be, what fills the gap.

    `margin` is how far below a check's threshold the rest must score, as a share of it: what
    was cut until it passes has met the detector more often than a draft.
    """

    most: Share = 0.5
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mark: str = ""


class Rewrite(Strict):
    """Who rewrites or resumes by the policy's principles; `staged` plans a rewrite first."""

    model: str = "target"
    staged: bool = True


class Detoxify(Strict):
    """Who rewrites a harmful answer; it sees the request only if the prompt names `{query}`."""

    model: str = "target"


class Resample(Strict):
    """The best of `tries` new answers at a temperature, by helpfulness less harm.

    `helper` is a model that is asked whether an answer helps; without one the first that
    passes is the best. With one, the first that passes and helps by `enough` is.
    """

    tries: Annotated[int, Field(ge=1, le=16)] = 3
    temperature: Annotated[float, Field(gt=0, le=2)] = 0.9
    helper: str | None = None
    enough: Share = 0.8


class Stream(Strict):
    """What happens while an answer is made: checks, ends, and what leaves.

    A running answer is checked at every `window` characters, and one that is harmful is not
    made to its end. `buffer` lets nothing out before the whole of it is checked, `window`
    lets it out as it is checked, but for the last `hold` characters. `after` names the steps
    that may mend an answer of which something has left; without any it is cut.
    """

    mode: Literal["buffer", "window"] = "buffer"
    window: Annotated[int, Field(ge=1)] | None = None
    hold: Annotated[int, Field(ge=1)] | None = None
    after: tuple[Literal["resume"], ...] = ()

    @model_validator(mode="after")
    def agree(self) -> Stream:
        for name in ("window", "hold"):
            if self.mode == "window" and getattr(self, name) is None:
                raise contradict("mode", value="window", fix=f"needs {name}; add e.g. {name}: 80")
        for name in ("hold", "after"):
            if self.mode == "buffer" and getattr(self, name):
                raise contradict(name, value=getattr(self, name), fix="needs mode: window; add it")
        return self


class Prompts(Strict):
    """What models are told; each text names its blanks in braces."""

    judge: str = prompts.JUDGE
    helpful: str = prompts.HELPFUL
    caption: str = prompts.CAPTION
    closed: str = prompts.CLOSED
    plan: str = prompts.PLAN
    rewrite: str = prompts.REWRITE
    detoxify: str = prompts.DETOXIFY
    resume: str = prompts.RESUME

    @model_validator(mode="after")
    def name_blanks(self) -> Prompts:
        for name, wanted in prompts.BLANKS.items():
            found = set(prompts.BLANK.findall(getattr(self, name)))
            if lost := wanted - found:
                raise contradict(
                    name, value=getattr(self, name), fix=f"lacks {{{min(lost)}}}; add it"
                )
            if strange := found - wanted - prompts.SPARE.get(name, frozenset()):
                raise contradict(
                    name,
                    value=getattr(self, name),
                    fix=f"{{{min(strange)}}} is no blank; remove it",
                )
        return self
