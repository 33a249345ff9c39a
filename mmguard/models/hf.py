"""Any HuggingFace image-text-to-text model with its processor, in this process.

What comes out is what the model's own `generate` gives for the same conversation: nothing
is added, left out or reordered. Torch and transformers load when a model does.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from mmguard.errors import InputError, MissingExtra, MmguardError, ModelError
from mmguard.media import decode
from mmguard.models.options import HOOKS, Plan, plan
from mmguard.models.prefix import USUAL, Prefixes, single, unshared
from mmguard.models.tokens import Settled, Sink, Spelling, Stop
from mmguard.types import AnyRequest, Image, Opaque, Reply, Text, Usage
from mmguard.verdict import decided

# What `from_pretrained` of a processor takes too.
SHARED = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class HFModel:
    """A model and its processor.

    At most `batch_size` rows are generated together, and only rows of which each comes out
    as if alone. One call runs at a time, in evaluation mode; a model in training mode is put
    back into it. A reply's tokens, and the completion tokens of its usage, include the token
    that ended it. Raises `InputError` for an option or part that the model cannot take, and
    `ModelError` when it fails.

    Keys and values of the last `reuse` prompts of one row stay in the model's memory, 2 GiB
    at most, until weights change, memory runs out or `forget` is called; a single row that
    begins alike, pictures included, goes on from there. `unshared` says why a model does not;
    `reuse=0` turns it off. `prefilled` and `reused` count prompts' tokens.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "hf",
        batch_size: int = 8,
        reuse: int = 4,
    ) -> None:
        self.model, self.processor = model, processor
        self.name, self.batch_size = name, batch_size
        self.lock = threading.Lock()
        self.known = generation_names()
        self.prefixes = Prefixes(model, reuse)
        self.unshared = unshared(model) if reuse else "it was turned off"
        self.prefilled = self.reused = 0

    @classmethod
    def load(cls, name: str, *, batch_size: int = 8, reuse: int = 4, **options: Any) -> HFModel:
        """A model from a local folder or the hub; `options` go to `from_pretrained`.

        Raises `ModelError` if it cannot be loaded.
        """
        try:
            # Without torch, transformers gives placeholders.
            import torch  # noqa: F401
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as exc:
            raise MissingExtra("torch and transformers", "hf", f"model {name!r}") from exc
        shared = {key: options[key] for key in SHARED if key in options}
        try:
            processor: Any = AutoProcessor.from_pretrained(name, **shared)
            model = AutoModelForImageTextToText.from_pretrained(name, **options)
        except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as exc:
            first = str(exc).strip().split("\n")[0]
            raise ModelError(f"model {name!r} cannot be loaded: {first}") from exc
        return cls(model.eval(), processor, name=name, batch_size=batch_size, reuse=reuse)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        """One reply a request, in order."""
        replies: dict[int, Reply] = {}
        for places, how in self.group(requests):
            rows = [requests[i] for i in places]
            replies.update(zip(places, self.answer(rows, how), strict=True))
        return [replies[i] for i in range(len(requests))]

    def stream(self, request: AnyRequest) -> Generator[str | Reply, None, None]:
        """Pieces of text as they are certain, then the reply that `generate` would have given.

        To close the generator stops the model at its next token.
        """
        how = plan(request.options, self.known)
        pieces: SimpleQueue[str | Reply | BaseException] = SimpleQueue()
        gone = threading.Event()
        sink = Sink(pieces.put, self.spelling(how))

        def work() -> None:
            try:
                [reply] = self.answer([request], how, sink, gone)
                sink.finish(reply.text)
                pieces.put(reply)
            except BaseException as exc:
                pieces.put(exc)

        thread = threading.Thread(target=work, name="mmguard-generate", daemon=True)
        thread.start()
        try:
            yield from drain(pieces)
        finally:
            gone.set()
            thread.join()

    def forget(self) -> int:
        """Drops what is kept of earlier prompts, and says of how many."""
        with self.lock:
            return self.prefixes.forget()

    # -- plans ----------------------------------------------------------------

    def group(self, requests: Sequence[AnyRequest]) -> Iterator[tuple[list[int], Plan]]:
        """Places of rows that can share a batch, with the plan that they share."""
        groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
        plans: dict[tuple[Any, ...], Plan] = {}
        for i, request in enumerate(requests):
            how = plan(request.options, self.known)
            alone = i if self.separate(request, how) else None
            # Mllama answers words otherwise beside a row with a picture.
            key = (bool(request.images), repr(how), alone)
            groups[key].append(i)
            plans[key] = how
        for key, places in groups.items():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size], plans[key]

    def separate(self, request: AnyRequest, how: Plan) -> bool:
        """Whether this row must be generated alone."""
        drawn = how.seed is not None and self.setting(how, "do_sample")
        # BLIP-2 would show a second picture to the row below; Mllama answers a row otherwise
        # beside one with more pictures.
        crowded = len(request.images) > 1
        hooked = not HOOKS.isdisjoint(how.arguments)
        return drawn or crowded or hooked or self.tokenizer.pad_token_id is None

    def setting(self, how: Plan, name: str) -> Any:
        """An option's value, from where `generate` takes it: the call, its config, the model."""
        given = how.arguments.get("generation_config")
        configs = (getattr(config, name, None) for config in (given, self.model.generation_config))
        values = (how.arguments.get(name), *configs)
        return next((value for value in values if value is not None), None)

    def spelling(self, how: Plan) -> Spelling:
        return Spelling(self.tokenizer, how.stop or tuple(self.setting(how, "stop_strings") or ()))

    # -- answers --------------------------------------------------------------

    def answer(
        self,
        requests: Sequence[AnyRequest],
        how: Plan,
        sink: Sink | None = None,
        gone: threading.Event | None = None,
    ) -> list[Reply]:
        """Replies to rows that share a batch; `sink` gets the tokens of one row as they come.

        Where memory runs out, once more without what is kept of earlier prompts.
        """
        try:
            return self.attempt(requests, how, sink, gone)
        except ModelError as exc:
            full = type(exc.__cause__).__name__ == "OutOfMemoryError"
            if not (full and self.forget() and sink is None):
                raise
        return self.attempt(requests, how, sink, gone)

    def attempt(
        self,
        requests: Sequence[AnyRequest],
        how: Plan,
        sink: Sink | None,
        gone: threading.Event | None,
    ) -> list[Reply]:
        rows = [converse(request) for request in requests]
        spelling = self.spelling(how)
        with self.ready(how, rows):
            inputs = self.encode(rows)
            result = self.call(inputs, how, sink, Stop(spelling, gone, self.settled(how)))
            start = prompt_length(inputs, result.sequences, self.model)
            firsts = self.first_tokens(result, how.top)
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            cached = self.prefixes.known
            self.prefilled += sum(lengths) - cached
            self.reused += cached
            made = [row[start:].tolist() for row in result.sequences]
            if how.judges:
                made = [
                    row[:1] if decided(first) else row
                    for row, first in zip(made, firsts, strict=True)
                ]
            ends = self.ends(how)
            read = [spelling.read(tokens, ends) for tokens in made]
        return [
            Reply(text, finish, Usage(length, len(tokens), cached), first, tokens)
            for (text, finish, tokens), length, first in zip(read, lengths, firsts, strict=True)
        ]

    def encode(self, rows: Sequence[Any]) -> Any:
        """The processor's tensors for these conversations, on the model's device, in its type."""
        if not getattr(self.processor, "chat_template", None):
            raise InputError(
                f"the processor of {self.name!r} has no chat template: set"
                " processor.chat_template to its model card's, or use another model"
            )
        # An encoder counts from its first token, a decoder goes on from its last.
        side = "right" if self.model.config.is_encoder_decoder else "left"
        inputs = self.processor.apply_chat_template(
            list(rows),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(rows) > 1, "padding_side": side},
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def call(self, inputs: Any, how: Plan, sink: Sink | None, stop: Stop) -> Any:
        """The model's own `generate`, over what it has not read before."""
        arguments = self.arguments(how, sink, stop)
        self.prefixes.known = 0
        if not self.continues(inputs, how):
            return self.model.generate(**inputs, **arguments)
        with self.prefixes.resume(inputs) as rest:
            return self.model.generate(**rest, **arguments)

    def continues(self, inputs: Any, how: Plan) -> bool:
        """Whether this call may go on from an earlier prompt, and a later one from this."""
        usual = all(self.setting(how, name) in values for name, values in USUAL.items())
        return usual and single(inputs) and not self.unshared

    def arguments(self, how: Plan, sink: Sink | None, stop: Stop) -> dict[str, Any]:
        """What `generate` is called with, beside the rows."""
        arguments = {**how.arguments, "return_dict_in_generate": True, "num_return_sequences": 1}
        arguments |= {"output_logits": how.top > 0, "output_scores": how.judges}
        if (config := arguments.pop("generation_config", None)) is not None:
            config = copy.deepcopy(config)
            arguments = {**config.update(**arguments), "generation_config": config}
        if self.setting(how, "stop_strings"):
            arguments["tokenizer"] = self.tokenizer
        # Transformers streams no beams: their text comes in one piece, at the end.
        if sink is not None and (self.setting(how, "num_beams") or 1) == 1:
            arguments["streamer"] = sink
        arguments["stopping_criteria"] = [*arguments.get("stopping_criteria", ()), stop]
        return arguments

    def ends(self, how: Plan) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        found = self.setting(how, "eos_token_id")
        return frozenset([found] if isinstance(found, int) else found or ())

    def first_tokens(self, result: Any, top: int) -> list[dict[str, float]]:
        """For each row its most probable first tokens, as text, with their probabilities.

        Of the model itself: temperature, penalties and other options do not count.
        """
        if not top:
            return [{} for _ in result.sequences]
        logits = result.logits[0]
        # Beams of one row begin alike: the first of them speaks for all.
        return self.likeliest(logits[:: len(logits) // len(result.sequences)], top)

    def likeliest(self, logits: Any, top: int) -> list[dict[str, float]]:
        """For each row of logits its most probable tokens."""
        shares, ids = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
        return [self.spell(*row) for row in zip(shares.tolist(), ids.tolist(), strict=True)]

    def settled(self, how: Plan) -> Settled | None:
        """Of a judge's rows, whether their first tokens say it; beams cannot stop one by one."""
        if not how.judges or (self.setting(how, "num_beams") or 1) > 1:
            return None
        return lambda logits: [decided(first) for first in self.likeliest(logits, how.top)]

    def spell(self, shares: Sequence[float], ids: Sequence[int]) -> dict[str, float]:
        """Probabilities by token text; tokens that read alike count together."""
        spelt: defaultdict[str, float] = defaultdict(float)
        for share, token in zip(shares, ids, strict=True):
            spelt[self.tokenizer.decode([token])] += share
        return dict(spelt)

    # -- running --------------------------------------------------------------

    @contextmanager
    def ready(self, how: Plan, rows: Sequence[Any]) -> Iterator[None]:
        """One caller at a time, in evaluation mode, without gradients, from the plan's seed."""
        import torch

        with self.lock, evaluating(self.model) as trained:
            try:
                # A tensor made under it, and kept by a module, would refuse to be trained.
                with torch.inference_mode(mode=not trained), seeded(how.seed, self.model):
                    yield
            except MmguardError:
                raise
            except Exception as exc:
                raise self.explain(exc, rows) from exc

    def explain(self, exc: Exception, rows: Sequence[Any]) -> ModelError:
        """The failure in a caller's words: most often, a model that demands a picture."""
        seen = any(
            part["type"] == "image" for row in rows for turn in row for part in turn["content"]
        )
        if not seen and ("image" in str(exc) or "pixel" in str(exc)):
            kind = self.model.config.model_type
            return ModelError(f"{self.name!r} ({kind}) cannot take words without a picture: {exc}")
        return ModelError(f"model {self.name!r} failed: {type(exc).__name__}: {exc}")


@contextmanager
def evaluating(model: Any) -> Iterator[bool]:
    """Evaluation mode inside, and after it every module in its own; gives whether any trained."""
    trained = [module for module in model.modules() if module.training]
    if trained:
        model.eval()
    try:
        yield bool(trained)
    finally:
        for module in trained:
            module.training = True


@contextmanager
def seeded(seed: int | None, model: Any) -> Iterator[None]:
    """Draws from this seed inside, and the process's own random state untouched after."""
    if seed is None:
        yield
        return
    import torch

    devices = {weights.device for weights in model.parameters() if weights.is_cuda}
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed % 2**63)
        yield


def generation_names() -> frozenset[str]:
    """Every option of transformers' `GenerationConfig`, and the config itself."""
    try:
        from transformers import GenerationConfig
    except ImportError as exc:
        raise MissingExtra("transformers", "hf", "a HuggingFace model") from exc
    fields = frozenset(GenerationConfig().to_dict()) - {"transformers_version"}
    return frozenset(name for name in fields if name[0] != "_") | {"generation_config"}


def drain(pieces: SimpleQueue[str | Reply | BaseException]) -> Iterator[str | Reply]:
    """What a thread puts into the queue, up to its reply or its failure."""
    while isinstance(item := pieces.get(), str):
        yield item
    if isinstance(item, BaseException):
        raise item
    yield item


def prompt_length(inputs: Any, sequences: Any, model: Any) -> int:
    """Where the new tokens start: after the prompt, unless the model leaves it out."""
    if model.config.is_encoder_decoder:
        # The token that starts every answer of a decoder is none of the answer.
        return 1
    size: int = inputs["input_ids"].shape[1]
    same = sequences.shape[1] >= size and bool((sequences[:, :size] == inputs["input_ids"]).all())
    return size if same else 0


def converse(request: AnyRequest) -> list[dict[str, Any]]:
    """The conversation in the form of chat templates."""
    return [
        {
            **dict(getattr(message, "extra", {})),
            "role": message.role,
            "content": [write(part) for part in message.parts],
        }
        for message in request.messages
    ]


def write(part: Text | Image | Opaque) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image", "image": decode(part)}
    raise InputError(f"this model cannot take a part of kind {part.kind!r}: remove it")
