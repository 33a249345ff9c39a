"""Any HuggingFace image-text-to-text model with its processor, in this process.

What comes out is what the model's own `generate` gives for the same conversation: nothing
is added, left out or reordered. Torch and transformers load when a model does.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from mmguard.errors import InputError, MissingExtra, MmguardError, ModelError
from mmguard.media import decode
from mmguard.models.options import Plan, cut, held, plan
from mmguard.types import AnyRequest, Image, Opaque, Reply, Text, Usage


class HFModel:
    """A model and its processor.

    Rows that share options and number of pictures are generated together, at most
    `batch_size` at a time. Raises `InputError` for an option or part that the model cannot
    take, and `ModelError` when it fails.
    """

    def __init__(
        self, model: Any, processor: Any, *, name: str = "hf", batch_size: int = 8
    ) -> None:
        self.model, self.processor = model, processor
        self.name, self.batch_size = name, batch_size
        self.lock = threading.Lock()
        self.known = generation_names()

    @classmethod
    def load(cls, name: str, **options: Any) -> HFModel:
        """A model from a local folder or the hub; `options` go to `from_pretrained`."""
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as exc:
            raise MissingExtra("transformers", "hf", f"model {name!r}") from exc
        try:
            processor: Any = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, **options)
        except (OSError, ValueError, KeyError) as exc:
            first = str(exc).strip().split("\n")[0]
            raise ModelError(f"model {name!r} cannot be loaded: {first}") from exc
        return cls(model.eval(), processor, name=name)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    # -- whole replies --------------------------------------------------------

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        """One reply a request, in order."""
        replies: dict[int, Reply] = {}
        for places, how in self.group(requests):
            rows = [converse(requests[i]) for i in places]
            replies.update(zip(places, self.answer(rows, how), strict=True))
        return [replies[i] for i in range(len(requests))]

    def group(self, requests: Sequence[AnyRequest]) -> Iterator[tuple[list[int], Plan]]:
        """Places of rows that can share a batch, with the plan that they share.

        Processors lay out rows of unequal picture counts in ways of their own, and a sampled
        row's draws depend on its neighbours: such rows go alone.
        """
        groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
        plans: dict[tuple[Any, ...], Plan] = {}
        for i, request in enumerate(requests):
            how = plan(request.options, self.known)
            alone = (
                i if how.arguments.get("do_sample") or self.tokenizer.pad_token_id is None else -1
            )
            key = (len(request.images), repr(how), alone)
            groups[key].append(i)
            plans[key] = how
        for key, places in groups.items():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size], plans[key]

    def answer(self, rows: Sequence[Any], how: Plan) -> list[Reply]:
        with self.ready(how, rows):
            inputs = self.encode(rows)
            result = self.call(inputs, how)
        start = prompt_length(inputs, result.sequences, self.model)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        first = self.first_tokens(result, how.top)
        return [
            self.read(tokens[start:].tolist(), lengths[i], how, first[i])
            for i, tokens in enumerate(result.sequences)
        ]

    def call(self, inputs: Any, how: Plan, **more: Any) -> Any:
        """The model's own `generate`."""
        arguments: dict[str, Any] = {**how.arguments, **more}
        if how.stop:
            arguments |= {"stop_strings": list(how.stop), "tokenizer": self.tokenizer}
        if how.top:
            arguments["output_logits"] = True
        return self.model.generate(**inputs, **arguments, return_dict_in_generate=True)

    def encode(self, rows: Sequence[Any]) -> Any:
        """The processor's tensors for these conversations, on the model's device, in its type."""
        if not getattr(self.processor, "chat_template", None):
            raise InputError(
                f"the processor of {self.name!r} has no chat template: set"
                " processor.chat_template to its model card's, or use another model"
            )
        inputs = self.processor.apply_chat_template(
            list(rows),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(rows) > 1, "padding_side": "left"},
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def read(self, tokens: list[int], prompt: int, how: Plan, first: Mapping[str, float]) -> Reply:
        """A reply of the new tokens: padding off, stop strings cut, the reason it ended."""
        ends = self.ends(how)
        stops = [i for i, token in enumerate(tokens) if token in ends]
        tokens = tokens[: stops[0] + 1] if stops else tokens
        text, stopped = cut(self.decode(tokens), how.stop)
        finish = "stop" if stops or stopped else "length"
        return Reply(text, finish, Usage(prompt, len(tokens)), first, tuple(tokens))

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def ends(self, how: Plan) -> set[int]:
        """Ids of the tokens that end an answer."""
        config = how.arguments.get("generation_config") or self.model.generation_config
        end = how.arguments.get("eos_token_id", config.eos_token_id)
        return set(end) if isinstance(end, list | tuple) else {end}

    def first_tokens(self, result: Any, top: int) -> list[dict[str, float]]:
        """For each row its most probable first tokens, as text, with their probabilities."""
        if not top:
            return [{} for _ in result.sequences]
        shares, ids = result.logits[0].float().softmax(-1).topk(top)
        found: list[dict[str, float]] = []
        for row_shares, row_ids in zip(shares.tolist(), ids.tolist(), strict=True):
            row: dict[str, float] = defaultdict(float)
            for share, token in zip(row_shares, row_ids, strict=True):
                row[self.tokenizer.decode([token])] += share
            found.append(dict(row))
        return found

    @contextmanager
    def ready(self, how: Plan, rows: Sequence[Any]) -> Iterator[None]:
        """One caller at a time, in evaluation mode, without gradients, from the plan's seed."""
        import torch

        with self.lock, torch.inference_mode(), seeded(how.seed):
            training = self.model.training
            self.model.eval()
            try:
                yield
            except MmguardError:
                raise
            except Exception as exc:
                raise self.explain(exc, rows) from exc
            finally:
                self.model.train(training)

    def explain(self, exc: Exception, rows: Sequence[Any]) -> ModelError:
        """The failure in a caller's words: most often, a model that demands a picture."""
        seen = any(
            part["type"] == "image" for row in rows for turn in row for part in turn["content"]
        )
        if not seen and ("image" in str(exc) or "pixel" in str(exc)):
            kind = self.model.config.model_type
            return ModelError(f"{self.name!r} ({kind}) cannot take words without a picture: {exc}")
        return ModelError(f"model {self.name!r} failed: {type(exc).__name__}: {exc}")

    # -- streams --------------------------------------------------------------

    def stream(self, request: AnyRequest) -> Generator[str | Reply, None, None]:
        """Pieces of text as they are certain, then the reply that `generate` would have given."""
        how, row = plan(request.options, self.known), converse(request)
        tokens: SimpleQueue[list[int] | Reply | Exception] = SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                tokens.put(self.produce(row, how, Sink(tokens.put, stop)))
            except Exception as exc:
                tokens.put(exc)

        thread = threading.Thread(target=work, name="mmguard-generate", daemon=True)
        thread.start()
        try:
            yield from self.pieces(tokens, how)
        finally:
            stop.set()
            thread.join()

    def produce(self, row: Any, how: Plan, sink: Sink) -> Reply:
        with self.ready(how, [row]):
            inputs = self.encode([row])
            more = {"streamer": sink, "stopping_criteria": [sink.stopped]}
            result = self.call(inputs, how, **more)
        start = prompt_length(inputs, result.sequences, self.model)
        first = self.first_tokens(result, how.top)[0]
        tokens = result.sequences[0][start:].tolist()
        return self.read(tokens, int(inputs["attention_mask"].sum()), how, first)

    def pieces(self, tokens: Any, how: Plan) -> Iterator[str | Reply]:
        seen: list[int] = []
        out = ""
        while isinstance(item := tokens.get(), list):
            seen += item
            text, _ = cut(self.decode([t for t in seen if t not in self.ends(how)]), how.stop)
            # Half a character, or half a stop string, may yet become something else.
            sure = len(text.removesuffix("\N{REPLACEMENT CHARACTER}")) - held(text, how.stop)
            if sure > len(out) and text.startswith(out):
                yield text[len(out) : sure]
                out = text[:sure]
        if isinstance(item, Exception):
            raise item
        if item.text != out:
            yield item.text[len(out) :]
        yield item


class Sink:
    """What transformers calls a streamer: it hands each new token on. The prompt comes first."""

    def __init__(self, put: Callable[[list[int]], None], stop: threading.Event) -> None:
        self.send, self.stop, self.prompt = put, stop, True

    def put(self, value: Any) -> None:
        if self.prompt:
            self.prompt = False
            return
        self.send(value.reshape(-1).tolist())

    def end(self) -> None:
        """Nothing is held back here."""

    def stopped(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """A stopping criterion: the reader has gone."""
        import torch

        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws from this seed inside, and the process's own random state untouched after."""
    if seed is None:
        yield
        return
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def generation_names() -> frozenset[str]:
    """Every option of transformers' `GenerationConfig`, and the config itself."""
    try:
        from transformers import GenerationConfig
    except ImportError as exc:
        raise MissingExtra("transformers", "hf", "a HuggingFace model") from exc
    return frozenset(GenerationConfig().to_dict()) | {"generation_config"}


def prompt_length(inputs: Any, sequences: Any, model: Any) -> int:
    """Where the new tokens start: after the prompt, unless the model leaves it out."""
    if model.config.is_encoder_decoder:
        return 0
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
