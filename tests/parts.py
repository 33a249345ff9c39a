"""What tiny models are made of: tokenizers, chat templates, configs and lively weights.

Everything is made in memory; nothing here is trained, and nothing is read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Its classes are untyped, or typed more narrowly than they accept.
tf: Any = transformers

torch.set_num_threads(1)

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
CORPUS = [
    "Describe the picture.",
    "What is this? yes no",
    "A red square on a table, 0123456789.",
] * 8
ENDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    **ENDS,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Tiny:
    """A model with its processor, and what they can do.

    `takes_text`: it answers words alone. `stock`: its processor is transformers' own class,
    so that a saved folder loads. `pictures`: how many it takes in one conversation.
    """

    model: Any
    processor: Any
    takes_text: bool = True
    stock: bool = True
    pictures: int = 2


def tokenizer(tokens: Sequence[str], names: Mapping[str, str] | None = None) -> Any:
    """A byte-level tokenizer with these special tokens; `names` are attributes for some."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[*SPECIAL, *tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=dict(names or {}),
        # The wrong side on purpose: the adapter has to ask for the right one.
        padding_side="right",
        model_max_length=4096,
    )


def template(picture: str) -> str:
    """A chat template in which each picture is this text."""
    part = "{% if p['type'] == 'image' %}" + picture + "{% else %}{{ p['text'] }}{% endif %}"
    parts = "{% for p in m['content'] %}" + part + "{% endfor %}"
    turn = "{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}" + parts
    turns = "{% for m in messages %}" + turn + "{% endif %}</s>\n{% endfor %}"
    return turns + "{% if add_generation_prompt %}assistant: {% endif %}"


def image_only(kind: Any, pictures: Any, words: Any, chat: str, **fields: Any) -> Any:
    """A processor of this kind that has no video half, which would need torchvision.

    A processor's parts are read off its `__init__`, so the subclass needs one of its own.
    """

    class ImageOnly(kind):  # type: ignore[misc]  # a class given as a value
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
        ) -> None:
            super().__init__(
                image_processor,
                tokenizer,
                video_processor=None,
                chat_template=chat_template,
                **fields,
            )

    ImageOnly.__name__ = kind.__name__
    if kind is tf.SmolVLMProcessor:
        ImageOnly.video_processor = type("NoVideo", (), {"num_frames": 1, "fps": 1})()
    return ImageOnly(pictures, words, template(chat))


def place(words: Any, token: str) -> int:
    """The id of a token."""
    found: int = words.convert_tokens_to_ids(token)
    return found


def text_config(kind: Any, words: Any, **fields: Any) -> Any:
    return kind(**{**TEXT, "vocab_size": len(words), **fields})


def clip_eyes() -> Any:
    return tf.CLIPVisionConfig(**EYES, image_size=32, patch_size=8, projection_dim=32)


def siglip_eyes(**fields: Any) -> Any:
    return tf.SiglipVisionConfig(
        **EYES, image_size=32, patch_size=8, vision_use_head=False, **fields
    )


def enliven(model: Any, gain: float = 2.0) -> None:
    """Weights under which answers vary with the words and the picture.

    As initialised, a tiny model repeats one token, and zeroed gates keep some eyes shut.
    """
    for name, weights in model.named_parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=gain * weights[0].numel() ** -0.5)
        elif "gate" in name:
            torch.nn.init.ones_(weights)
        elif "bias" in name:
            torch.nn.init.normal_(weights, std=0.1)
