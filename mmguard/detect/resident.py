"""A guard LLM in this process: its chat template, one step of its own `generate`, a softmax.

What a guard writes before its label is written for it, so that the label is the next token.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmguard.detect.families import Family
from mmguard.detect.questions import Question
from mmguard.detect.readings import Verdict, read_categories, weigh_labels
from mmguard.detect.settings import load_weights, place_model
from mmguard.errors import BundleError, DetectorError, MmguardError
from mmguard.media import decode
from mmguard.models.hf import HFModel, converse
from mmguard.models.options import Plan
from mmguard.models.tokens import Spelling, Stop
from mmguard.types import Image

if TYPE_CHECKING:
    from mmguard.detect.guards import Guard

PROBE = "mmguard probe"


def load_resident(settings: Guard, family: Family, listing: float) -> Resident:
    """The guard in a local folder or of the hub; `BundleError` if it cannot be loaded."""
    seeing = family.images > 0
    name, pinned = settings.model, settings.pinned
    processor = load_weights("AutoProcessor" if seeing else "AutoTokenizer", name, **pinned)
    kind = "AutoModelForImageTextToText" if seeing else "AutoModelForCausalLM"
    model = place_model(load_weights(kind, name, **pinned), settings.device)
    host = HFModel(model, processor, name=name, batch_size=settings.batch_size)
    return Resident(host, family, floor=settings.floor, listing=listing)


class Resident:
    """Asks a model in this process, in batches of rows that come out as if alone.

    `floor` is the least probability that the labels must have together. Questions whose
    answer scores `listing` or more are asked for their categories too.
    """

    def __init__(
        self, host: HFModel, family: Family, *, floor: float = 0.1, listing: float = 0.3
    ) -> None:
        self.host, self.family = host, family
        self.floor, self.listing = floor, listing
        # A fast tokenizer fails when two threads pad with it at once.
        self.lock = threading.Lock()
        self.plain = family.form == "template" and self.takes_plain()

    # -- asking ---------------------------------------------------------------

    def ask(self, questions: Sequence[Question]) -> list[Verdict | MmguardError]:
        """A verdict or a failure for each question, in order."""
        found: dict[int, Verdict | MmguardError] = {}
        with self.lock:
            for places in self.group(questions):
                rows = [questions[i] for i in places]
                found.update(zip(places, self.attempt(rows), strict=True))
        return [found[i] for i in range(len(questions))]

    def close(self) -> None:
        """Nothing is open."""

    def group(self, questions: Sequence[Question]) -> Iterator[list[int]]:
        """Places of questions that can share a batch: alike in pictures and leads."""
        groups: dict[Any, list[int]] = {}
        for i, question in enumerate(questions):
            seen = len(question.request.images)
            alone = i if seen > 1 or self.host.tokenizer.pad_token_id is None else None
            groups.setdefault((seen, question.leads, alone), []).append(i)
        size = self.host.batch_size
        for places in groups.values():
            yield from (places[start : start + size] for start in range(0, len(places), size))

    def attempt(self, rows: Sequence[Question]) -> Sequence[Verdict | MmguardError]:
        """Verdicts of one batch; where it fails, each row for itself."""
        try:
            return self.judge(rows)
        except MmguardError as exc:
            if len(rows) == 1:
                return [exc]
        return [self.attempt([row])[0] for row in rows]

    def judge(self, rows: Sequence[Question]) -> list[Verdict]:
        texts = [self.render(row) for row in rows]
        images = [row.request.images for row in rows]
        shares: list[dict[str, float]] = []
        for i, lead in enumerate(rows[0].leads):
            texts = [begin(text, lead, new=i > 0) for text in texts]
            shares = self.share(texts, images, lead)
            if i + 1 < len(rows[0].leads):
                texts = [
                    text + gap(lead) + top(row) for text, row in zip(texts, shares, strict=True)
                ]
        scores = [weigh_labels(self.family.labels, row, self.floor) for row in shares]
        listed = self.list_categories(texts, images, shares, scores)
        return [
            Verdict(score, names, "tokens") for score, names in zip(scores, listed, strict=True)
        ]

    # -- text -----------------------------------------------------------------

    def takes_plain(self) -> bool:
        """Whether the chat template takes words as they are, or only a list of parts.

        Raises `BundleError` if it takes neither.
        """
        forms: list[Any] = [[{"type": "text", "text": PROBE}]]
        if not self.family.images:
            forms.insert(0, PROBE)
        reason = "it leaves the words out"
        for content in forms:
            try:
                made = self.template([{"role": "user", "content": content}], self.probe_arguments())
            except BundleError:
                raise
            except Exception as exc:
                reason = str(exc)
                continue
            if PROBE in made and "{'type'" not in made:
                return isinstance(content, str)
        raise BundleError(
            f"the chat template of settings.model {self.host.name!r} does not take a turn"
            f" ({reason}): name another family, or a model of this one"
        )

    def probe_arguments(self) -> Mapping[str, Any]:
        first = self.family.criteria[0].request if self.family.criteria else {}
        return {**self.family.arguments, **first}

    def template(self, turns: Sequence[Any], arguments: Mapping[str, Any]) -> str:
        if not getattr(self.host.processor, "chat_template", None):
            raise BundleError(
                f"settings.model {self.host.name!r} has no chat template, and its family is"
                " asked by it: name another family, or a model of this one"
            )
        made: str = self.host.processor.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, **arguments
        )
        return made

    def render(self, question: Question) -> str:
        """The guard's whole prompt as text."""
        if question.prompt:
            return question.prompt
        turns = converse(question.request)
        if self.plain:
            turns = [{**turn, "content": words(turn["content"])} for turn in turns]
        try:
            return self.template(turns, question.arguments)
        except MmguardError:
            raise
        except Exception as exc:
            raise DetectorError(f"the chat template of {self.host.name!r} failed: {exc}") from exc

    # -- tokens ---------------------------------------------------------------

    def encode(self, texts: Sequence[str], images: Sequence[tuple[Image, ...]]) -> Any:
        """Tensors padded on the left, on the model's device."""
        how = {"padding": len(texts) > 1, "padding_side": "left", "return_tensors": "pt"}
        given: dict[str, Any] = {"text": list(texts), "add_special_tokens": False, **how}
        if images[0]:
            given["images"] = [[decode(image) for image in row] for row in images]
        inputs = self.host.processor(**given)
        self.check_length(inputs["input_ids"].shape[1])
        model = self.host.model
        # A tokenizer's own tensors are ids, which have no other type to be in.
        return inputs.to(model.device, **({"dtype": model.dtype} if images[0] else {}))

    def check_length(self, size: int) -> None:
        config = self.host.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        if most and size + self.family.tokens > most:
            raise DetectorError(f"{size} tokens are more than {self.host.name!r} reads: {most}")

    def run(self, texts: Sequence[str], images: Sequence[tuple[Image, ...]], tokens: int) -> Any:
        """The model's own greedy `generate`, with its logits and where the new tokens start."""
        how = Plan({"max_new_tokens": tokens, "do_sample": False}, top=1)
        with self.host.ready(how, []):
            inputs = self.encode(texts, images)
            stop = Stop(Spelling(self.host.tokenizer))
            return self.host.call(inputs, how, None, stop), inputs["input_ids"].shape[1]

    def share(
        self, texts: Sequence[str], images: Sequence[tuple[Image, ...]], lead: str
    ) -> list[dict[str, float]]:
        """For each text the probability that each label is what comes next."""
        result, _ = self.run(texts, images, 1)
        shares = result.logits[0].float().softmax(-1)
        starts = self.starts(lead)
        rows = [
            {label: float(row[list(ids)].sum()) for label, ids in starts.items()} for row in shares
        ]
        if not all(math.isfinite(share) for row in rows for share in row.values()):
            raise DetectorError(f"model {self.host.name!r} gives no probabilities, but NaN")
        return rows

    def starts(self, lead: str) -> dict[str, frozenset[int]]:
        """Ids of the tokens that start each label after `lead`, in any of its spellings."""
        found = {
            label: frozenset(
                token
                for word in {label, label.lower(), label.capitalize()}
                for space in ("", " ")
                if (token := self.next_token(lead, space + word)) is not None
            )
            for label in self.family.labels
        }
        counted = [token for ids in found.values() for token in ids]
        alone = {t for t in counted if counted.count(t) == 1}
        own = {label: ids & alone for label, ids in found.items()}
        if not all(own.values()):
            raise BundleError(
                f"settings.model {self.host.name!r} spells {sorted(own)} with the same first"
                " token: it is not of this family; name another family"
            )
        return own

    def next_token(self, lead: str, word: str) -> int | None:
        """The first token of `word` after `lead`, if `lead` stays as it is."""
        before = self.tokens(lead)
        after = self.tokens(lead + word)
        return after[len(before)] if after[: len(before)] == before else None

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.host.tokenizer.encode(text, add_special_tokens=False)
        return found

    # -- categories -----------------------------------------------------------

    def list_categories(
        self,
        texts: Sequence[str],
        images: Sequence[tuple[Image, ...]],
        shares: Sequence[dict[str, float]],
        scores: Sequence[float],
    ) -> list[tuple[str, ...]]:
        """What the guard lists under its most unsafe label, for rows that may matter."""
        found: list[tuple[str, ...]] = [()] * len(texts)
        chosen = [i for i, score in enumerate(scores) if score >= self.listing]
        if not self.family.listed or not chosen:
            return found
        labels = [self.unsafe(shares[i]) for i in chosen]
        given = [
            texts[i] + gap(texts[i]) + label + "\n" for i, label in zip(chosen, labels, strict=True)
        ]
        result, start = self.run(given, [images[i] for i in chosen], self.family.tokens)
        for i, label, row in zip(chosen, labels, result.sequences, strict=True):
            text = self.host.tokenizer.decode(row[start:], skip_special_tokens=True)
            found[i] = read_categories(self.family, f"{label}\n{text}")
        return found

    def unsafe(self, shares: Mapping[str, float]) -> str:
        """The likeliest of the labels that count as unsafe."""
        bad = [label for label, weight in self.family.labels.items() if weight > 0]
        return max(bad, key=shares.__getitem__)


def begin(text: str, lead: str, *, new: bool) -> str:
    """The text with the beginning of the guard's answer, unless the template wrote it already."""
    if new:
        text += "\n"
    return text if lead and text.endswith(lead) else text + lead


def gap(text: str) -> str:
    """A label stands after a space, but at the beginning of a line."""
    return " " if text and not text[-1].isspace() else ""


def top(shares: Mapping[str, float]) -> str:
    return max(shares, key=shares.__getitem__)


def words(content: Any) -> str:
    return "\n".join(part["text"] for part in content if part["type"] == "text")
