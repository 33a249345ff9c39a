"""Prompts' beginnings that a model has read: one look at a picture serves draft, judge and caption.

Keeps the keys and values of the last few prompts. A later prompt that begins with the same
tokens, and with equal pixels behind every picture's token, is read from where it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Architectures of which a continued prompt is tested to give the tokens of a whole one.
SHARING = frozenset(
    {
        "deepseek_vl",
        "gemma3",
        "idefics2",
        "idefics3",
        "internvl",
        "llava",
        "llava_next",
        "llava_onevision",
        "mllama",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "smolvlm",
        "vipllava",
    }
)
# Why others read every prompt whole.
WHOLE: Mapping[str, str] = {
    "blip-2": "it demands a picture in every call",
    "paligemma": "its pictures' tokens see the words after them",
}
# Options of which any other value makes a cache of another kind, or none.
USUAL: Mapping[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    # Gemma's own, which transformers takes for none.
    "cache_implementation": (None, "hybrid"),
    "dola_layers": (None,),
    "guidance_scale": (None,),
    "num_beams": (None, 1),
    "penalty_alpha": (None,),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "token_healing": (None, False),
    "use_cache": (None, True),
}
# Tensors with one value a token; every other is part of what the pictures are.
SPELT = frozenset(
    {
        "attention_mask",
        "cross_attention_mask",
        "input_ids",
        "mm_token_type_ids",
        "token_type_ids",
    }
)
# Where peft notes which of a layer's adapters take part.
ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters")
# Fewer tokens than this are read again sooner than they are copied.
LEAST = 16
# Bytes of keys and values that are kept at most.
ROOM = 2 << 30


def unshared(model: Any) -> str:
    """Why this model reads every prompt whole; empty if it need not."""
    kind = model.config.model_type
    if kind not in SHARING:
        return f"{kind}: {WHOLE.get(kind, 'nobody has tested that it can continue a prompt')}"
    if not hasattr(cache_class(), "activate_past_recording"):
        return "this transformers cannot take a cache back: upgrade it"
    if not all(plain(layer) for layer in blank(model).layers):
        return f"{kind}: a layer of it keeps more than keys and values"
    return ""


def cache_class() -> Any:
    from transformers import DynamicCache

    return DynamicCache


def plain(layer: Any) -> bool:
    """Whether a cache's layer is nothing but keys and values, one a token."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def blank(model: Any) -> Any:
    """The cache that `generate` would make, but of which no window forgets."""
    cache = cache_class()(config=model.config.get_text_config(decoder=True))
    cache.activate_past_recording()
    return cache


def single(inputs: Mapping[str, Any]) -> bool:
    """Whether this is one row without padding, and all of it tensors."""
    row = len(inputs["input_ids"]) == 1 and bool(inputs["attention_mask"].all())
    return row and all(hasattr(value, "nbytes") for value in inputs.values())


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row's tokens, its pictures' tensors, and where their tokens begin and end."""

    tokens: Any
    pictures: Mapping[str, Any]
    first: int
    last: int

    @classmethod
    def of(cls, inputs: Mapping[str, Any], token: int) -> Prompt:
        tokens = inputs["input_ids"][0]
        pictures = {name: value for name, value in inputs.items() if name not in SPELT}
        places = (tokens == token).nonzero().flatten().tolist()
        # Pictures without a place would change every token.
        nowhere = [0, len(tokens)] if pictures else [len(tokens), 0]
        first, last = (places[0], places[-1] + 1) if places else nowhere
        return cls(tokens, pictures, first, last)

    def shared(self, old: Prompt) -> int:
        """How many first tokens mean here what they meant in `old`; one is left to be read."""
        size = min(agreement(self.tokens, old.tokens), len(self.tokens) - 1)
        # Features are put in all at once: either every picture is behind us, or none.
        if size >= self.last and alike(self.pictures, old.pictures):
            return size
        return min(size, self.first)

    def rest(self, inputs: Mapping[str, Any], size: int) -> dict[str, Any]:
        """The inputs without the pixels of pictures that are among the first `size` tokens."""
        seen = size >= self.last
        return {name: value for name, value in inputs.items() if not (seen and "pixel" in name)}


def agreement(one: Any, other: Any) -> int:
    """How many first tokens are the same."""
    size = min(len(one), len(other))
    different = (one[:size] != other[:size]).nonzero()
    return int(different[0]) if len(different) else size


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt that was read, with each layer's keys and values."""

    prompt: Prompt
    layers: tuple[tuple[Any, Any], ...]

    @property
    def nbytes(self) -> int:
        tensors = [*self.prompt.pictures.values(), *(t for pair in self.layers for t in pair)]
        return sum(tensor.nbytes for tensor in tensors)


class Prefixes:
    """The last `limit` prompts that a model has read; at most `room` bytes of them.

    One caller at a time. They are forgotten when weights change or adapters take turns; a
    change that neither torch nor peft notes needs `forget`.
    """

    def __init__(self, model: Any, limit: int, room: int = ROOM) -> None:
        self.model, self.limit, self.room = model, limit, room
        self.kept: list[Prefix] = []
        self.state = self.known = 0
        # Mllama's layers that look at pictures, whose keys are the pictures' own.
        config = model.config.get_text_config(decoder=True)
        self.apart = frozenset(getattr(config, "cross_attention_layers", ()))

    def forget(self) -> int:
        """How many prompts were forgotten: all."""
        count, self.kept = len(self.kept), []
        return count

    @contextmanager
    def resume(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What to give `generate`, which need not read the first `known` tokens again.

        Keeps the prompt when that has gone well.
        """
        self.refresh()
        prompt = Prompt.of(inputs, self.model.config.image_token_id)
        size, found = self.find(prompt)
        cache = self.restore(found, size) if found else blank(self.model)
        rest = prompt.rest(inputs, size) if found else dict(inputs)
        self.known = size
        yield {**rest, "past_key_values": cache}
        # What is left of a prompt whose pictures and half of whose tokens are known is soon
        # read, and its double would fill memory.
        if size < prompt.last or 2 * size < len(prompt.tokens):
            self.keep(prompt, cache)

    def refresh(self) -> None:
        """Forgets all if the model is not what it was at the last call."""
        state = trace(self.model)
        if state != self.state:
            self.forget()
        self.state = state

    def find(self, prompt: Prompt) -> tuple[int, Prefix | None]:
        """The longest beginning that is kept, of equals the last; it is forgotten last."""
        sizes = [(self.common(prompt, prefix.prompt), i) for i, prefix in enumerate(self.kept)]
        size, place = max(sizes, default=(0, 0))
        if size < LEAST:
            return 0, None
        self.kept.append(self.kept.pop(place))
        return size, self.kept[-1]

    def common(self, new: Prompt, old: Prompt) -> int:
        """How many tokens they share; where pictures stand apart, none without all of them."""
        size = new.shared(old)
        seen = bool(new.pictures) and size >= new.last
        return size if seen or not self.apart else 0

    def restore(self, prefix: Prefix, size: int) -> Any:
        """A cache of its own, as it was after the first `size` tokens."""
        for part in self.model.modules():
            # Qwen's positions of the last prompt, which need not be this one.
            if "rope_deltas" in vars(part):
                part.rope_deltas = None
        cache = blank(self.model)
        for i, (keys, values) in enumerate(prefix.layers):
            end = None if i in self.apart else size
            cache.update(keys[..., :end, :], values[..., :end, :], i)
        return cache

    def keep(self, prompt: Prompt, cache: Any) -> None:
        size = len(prompt.tokens)
        ends = [None if i in self.apart else size for i in range(len(cache.layers))]
        if not all(layer.is_initialized for layer in cache.layers):
            return
        pairs = [
            (layer.keys[..., :end, :].clone(), layer.values[..., :end, :].clone())
            for layer, end in zip(cache.layers, ends, strict=True)
        ]
        self.kept.append(Prefix(prompt, tuple(pairs)))
        while len(self.kept) > self.limit or sum(prefix.nbytes for prefix in self.kept) > self.room:
            self.kept.pop(0)


def trace(model: Any) -> int:
    """What changes when a weight is moved or written to, or an adapter is switched."""
    weights = tuple((weight.data_ptr(), version(weight)) for weight in model.parameters())
    parts = (vars(part) for part in model.modules())
    return hash((weights, tuple(str(part[n]) for part in parts for n in ADAPTERS if n in part)))


def version(weight: Any) -> int:
    return 0 if weight.is_inference() else weight._version
