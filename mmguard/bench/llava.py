"""A LLaVA of random weights, made in memory: for what answers cost, not for what they say.

Its picture takes as many tokens as the vision half has patches (LLaVA-1.5: 336 / 14 squared,
576). It answers in whole words and never ends by itself, so that lengths are the caller's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mmguard import prompts
from mmguard.errors import MissingExtra

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNKNOWN, EYE = range(len(SPECIAL))
WORD = re.compile(r"[A-Za-z]+")
PATCH = 14
# Pictures stand before the words, as in LLaVA-1.5.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, slots=True)
class Size:
    """Layers and width of the language half; the picture's side in pixels, 14 to a patch."""

    layers: int = 6
    width: int = 512
    side: int = 336

    @property
    def patches(self) -> int:
        """Tokens of one picture."""
        return int((self.side // PATCH) ** 2)


USUAL = Size()


def make_llava(size: Size = USUAL, seed: int = 7) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor, the same weights for the same seed."""
    try:
        import torch
        import transformers
    except ImportError as exc:
        raise MissingExtra("torch and transformers", "hf", "the random model") from exc
    tf: Any = transformers
    words = make_tokenizer(tf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.LlavaForConditionalGeneration(make_config(tf, size, len(words)))
        enliven(model)
    how = model.generation_config
    how.pad_token_id, how.bos_token_id, how.eos_token_id = PAD, BOS, EOS
    how.suppress_tokens = mute(words)
    return model.eval(), make_processor(tf, size, words)


def corpus() -> list[str]:
    """What mmguard says to models: the words that a prompt is made of."""
    names = ("JUDGE", "CAPTION", "CLOSED", "PLAN", "REWRITE", "DETOXIFY", "HELPFUL", "REFUSAL")
    return [*(getattr(prompts, name) for name in names), *prompts.PRINCIPLES]


def make_tokenizer(tf: Any) -> Any:
    """A byte-level tokenizer that knows the words of our prompts: about a token a word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=0,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus(), trainer)
    pad, start, end, unknown, eye = SPECIAL
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        unk_token=unknown,
        extra_special_tokens={"image_token": eye},
        model_max_length=8192,
    )


def mute(words: Any) -> list[int]:
    """Every token that is no whole word: pieces, bytes, and the end of an answer."""
    known = {word for text in corpus() for word in WORD.findall(text)}
    spoken = {f"\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}{word}" for word in known}
    return [place for token, place in words.get_vocab().items() if token not in spoken]


def make_config(tf: Any, size: Size, vocabulary: int) -> Any:
    heads = max(1, size.width // 64)
    eyes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    return tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(
            **eyes, num_hidden_layers=2, image_size=size.side, patch_size=PATCH
        ),
        text_config=tf.LlamaConfig(
            hidden_size=size.width,
            intermediate_size=2 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=8192,
            vocab_size=vocabulary,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        ),
        image_token_index=EYE,
    )


def make_processor(tf: Any, size: Size, words: Any) -> Any:
    square = {"height": size.side, "width": size.side}
    pictures = tf.CLIPImageProcessorPil(size={"shortest_edge": size.side}, crop_size=square)
    return tf.LlavaProcessor(
        pictures,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def enliven(model: Any) -> None:
    """Weights under which answers vary: as initialised, a small model repeats one token."""
    import torch

    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=2 * weights[0].numel() ** -0.5)
