"""The linear model inside an encoder bundle: a second opinion that knows words, not meaning.

It reads the network's own windows, as text, so what is kept of a window holds both opinions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmguard.detect.linear import Head, answer_fields, clean, read_heads, request_fields
from mmguard.detect.windows import Window
from mmguard.errors import BundleError

if TYPE_CHECKING:
    from mmguard.bundles import Bundle
    from mmguard.detect.linear import Hashes

FILE = "linear.npz"


@dataclass(frozen=True, slots=True)
class Wording:
    """The heads `answer` and `request` of a linear model; `share` is theirs of a logit, 0 to 1."""

    heads: Mapping[str, Head]
    share: float

    def read(self, window: Window, tokenizer: Any) -> float:
        """The logit of p(answer is harmful), or of p(request is harmful) where there is none."""
        head = self.heads["answer" if window.types[-1] else "request"]
        return head.logit(fields(window, tokenizer))

    def blend(self, network: float, words: float) -> float:
        """One logit of two."""
        return (1 - self.share) * network + self.share * words


def fields(window: Window, tokenizer: Any) -> list[Hashes]:
    """The hashes of a window's request and, if it has one, of its answer."""
    size = len(window.types) - sum(window.types)
    asked = request_fields(spell(window.ids[1 : size - 1], tokenizer))
    if size == len(window.ids):
        return asked
    return [*asked, *answer_fields(spell(window.ids[size:-1], tokenizer))]


def spell(ids: Sequence[int], tokenizer: Any) -> str:
    return clean(tokenizer.decode(list(ids)))


def read_wording(bundle: Bundle) -> Wording | None:
    """The linear model of a bundle that has one."""
    if FILE not in bundle.manifest.files:
        return None
    share = float(bundle.settings["share"])
    if not 0 <= share <= 1:
        raise BundleError(f"bundle {bundle.name!r}: share is {share}, not from 0 to 1")
    return Wording(read_heads(bundle, FILE), share)
