"""Tiny random models of the architectures that guards are made of, as folders.

Their chat templates are as short as they can be, and put in what the real ones are given:
the turns, and the arguments that say what to look for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.parts import EYES, PAD, TEXT, enliven, place, tf, tokenizer
from tests.tiny import build

TURN = "{{ m['role'] }}: {{ m['content'] }}\n"
LISTED = "{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}{{ '\\n' }}"
# One architecture a family, and what its template adds to the turns.
TAILS = {
    "llama-guard-3": "Is the last turn safe?",
    "qwen3guard": "Judge:<think></think>\n",
    "shieldgemma": "{{ guideline }} Yes or No?",
    "wildguard": "",
    "granite-guardian-3": "{{ guardian_config['risk_name'] }}? Yes or No?",
    "granite-guardian-3.3": "{{ guardian_config['criteria_id'] }} {{ think }}?",
}
KINDS: dict[str, str] = {
    "llama-guard-3": "Llama",
    "qwen3guard": "Qwen3",
    "shieldgemma": "Gemma2",
    "wildguard": "Mistral",
    "granite-guardian-3": "Granite",
    "granite-guardian-3.3": "Granite",
}
WILD = "<s>Judge.\nHuman: {query}\nAssistant: {answer}\nAnswers:\n"


def text_guard(family: str) -> tuple[Any, Any]:
    """A model and its tokenizer, whose template takes words, not parts."""
    words = tokenizer([])
    if TAILS[family]:
        words.chat_template = f"{{% for m in messages %}}{TURN}{{% endfor %}}{TAILS[family]}"
    kind = KINDS[family]
    more = {"head_dim": 8} if kind in ("Gemma2", "Qwen3") else {}
    config = getattr(tf, f"{kind}Config")(**{**TEXT, "vocab_size": len(words), **more})
    return lively(getattr(tf, f"{kind}ForCausalLM")(config)), words


def lively(model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        enliven(model)
    # Enlivened weights are sharp: labels would have no probability at all.
    model.get_output_embeddings().weight.data *= 0.3
    model.generation_config.pad_token_id = PAD
    return model.eval()


class Looker:
    """A processor as Llama 4 needs one; transformers' own would need torchvision."""

    chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<|image|>{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}safe?"
    )

    def __init__(self, words: Any) -> None:
        self.tokenizer = words

    def apply_chat_template(self, turns: Any, **how: Any) -> Any:
        return self.tokenizer.apply_chat_template(turns, chat_template=self.chat_template, **how)

    def __call__(self, text: list[str], images: Any = None, **how: Any) -> Any:
        seen = "<|image_start|>" + "<|patch|>" * 4 + "<|image_end|>"
        encoded = self.tokenizer([row.replace("<|image|>", seen) for row in text], **how)
        if images:
            small = [
                np.asarray(one.convert("RGB").resize((32, 32))) for row in images for one in row
            ]
            encoded["pixel_values"] = torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 255
        return tf.BatchFeature(dict(encoded))


def llama4() -> tuple[Any, Any]:
    """Llama Guard 4's architecture, dense."""
    tokens = ["<|patch|>", "<|image_start|>", "<|image_end|>"]
    words = tokenizer(tokens)
    eyes = {**EYES, "image_size": 32, "patch_size": 8, "pixel_shuffle_ratio": 0.5}
    eyes |= {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    eyes |= {"intermediate_size": 128}
    text = {**TEXT, "vocab_size": len(words), "intermediate_size_mlp": 64, "head_dim": 8}
    dense: dict[str, Any] = {"num_local_experts": 1, "moe_layers": []}
    image, start, end = (place(words, token) for token in tokens)
    config = tf.Llama4Config(
        vision_config=eyes,
        text_config={**text, **dense, "attention_chunk_size": 4096},
        image_token_index=image,
        boi_token_index=start,
        eoi_token_index=end,
    )
    return lively(tf.Llama4ForConditionalGeneration(config)), Looker(words)


@cache
def made(family: str) -> tuple[Any, Any]:
    if family == "llama-guard-4":
        return llama4()
    if family == "llama-guard-3-vision":
        tiny = build("mllama")
        return tiny.model, tiny.processor
    return text_guard(family)


def save_guard(folder: Path, model: Any, words: Any) -> Path:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_bundle(folder: Path, kind: str, **settings: Any) -> Path:
    """A user's own `detector.yaml`."""
    folder.mkdir(exist_ok=True)
    manifest = {
        "name": "mine",
        "version": "1",
        "kind": kind,
        "description": "a test",
        "license": "Apache-2.0",
        "settings": settings,
    }
    (folder / "detector.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return folder
