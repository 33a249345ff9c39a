"""Fifteen real MLLM architectures, tiny, with random weights and tokenizers made in memory.

The sizes are the smallest that each architecture's code accepts; every part of it runs.
Without torchvision the video halves of some processors cannot be built: `image_only` makes
a processor without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SQUARE = {"height": 32, "width": 32}
PINS = [[32, 64], [64, 32], [64, 64]]


@dataclass(frozen=True)
class Tiny:
    """A model with its processor; `takes_text` says whether it answers words alone."""

    model: Any
    processor: Any
    takes_text: bool = True


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
        padding_side="left",
        model_max_length=4096,
    )


def template(picture: str) -> str:
    """A chat template in which each picture is this text."""
    part = "{% if p['type'] == 'image' %}" + picture + "{% else %}{{ p['text'] }}{% endif %}"
    parts = "{% for p in m['content'] %}" + part + "{% endfor %}"
    turn = "{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}" + parts
    turns = "{% for m in messages %}" + turn + "{% endif %}</s>\n{% endfor %}"
    return turns + "{% if add_generation_prompt %}assistant: {% endif %}"


def image_only(kind: Any, pictures: Any, words: Any, **fields: Any) -> Any:
    """A processor of this kind that has no video half.

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
    return ImageOnly(pictures, words, fields.pop("chat_template"))


def place(words: Any, token: str) -> int:
    found: int = words.convert_tokens_to_ids(token)
    return found


def text_config(kind: Any, words: Any, **fields: Any) -> Any:
    return kind(**{**TEXT, "vocab_size": len(words), **fields})


def clip_eyes() -> Any:
    return tf.CLIPVisionConfig(**EYES, image_size=32, patch_size=8, projection_dim=32)


def llava() -> Tiny:
    words = tokenizer(["<image>"], {"image_token": "<image>"})
    pictures = tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    how = {"patch_size": 8, "vision_feature_select_strategy": "default"}
    processor = tf.LlavaProcessor(
        pictures, words, **how, num_additional_image_tokens=1, chat_template=template("<image>\n")
    )
    config = tf.LlavaConfig(
        vision_config=clip_eyes(),
        text_config=text_config(tf.LlamaConfig, words),
        image_token_index=place(words, "<image>"),
    )
    return Tiny(tf.LlavaForConditionalGeneration(config), processor)


def llava_next() -> Tiny:
    words = tokenizer(["<image>"], {"image_token": "<image>"})
    pictures = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=PINS
    )
    how = {"patch_size": 8, "vision_feature_select_strategy": "default"}
    processor = tf.LlavaNextProcessor(
        pictures, words, **how, num_additional_image_tokens=1, chat_template=template("<image>\n")
    )
    config = tf.LlavaNextConfig(
        vision_config=clip_eyes(),
        text_config=text_config(tf.LlamaConfig, words),
        image_token_index=place(words, "<image>"),
        image_grid_pinpoints=PINS,
    )
    return Tiny(tf.LlavaNextForConditionalGeneration(config), processor)


def llava_onevision() -> Tiny:
    words = tokenizer(["<image>", "<video>"], {"image_token": "<image>", "video_token": "<video>"})
    pictures = tf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINS)
    processor = image_only(
        tf.LlavaOnevisionProcessor,
        pictures,
        words,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(
            **EYES, image_size=32, patch_size=8, vision_use_head=False
        ),
        text_config=text_config(tf.Qwen2Config, words),
        image_token_index=place(words, "<image>"),
        video_token_index=place(words, "<video>"),
        image_grid_pinpoints=PINS,
        vision_feature_layer=-1,
    )
    return Tiny(tf.LlavaOnevisionForConditionalGeneration(config), processor)


TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>"]


def idefics2() -> Tiny:
    words = tokenizer(IDEFICS[:3])
    pictures = tf.Idefics2ImageProcessorPil(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False
    )
    processor = tf.Idefics2Processor(
        pictures, words, image_seq_len=4, chat_template=template("<image>")
    )
    config = tf.Idefics2Config(
        vision_config={**EYES, "image_size": 32, "patch_size": 8},
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "num_key_value_heads": 2,
            "resampler_head_dim": 8,
        },
        text_config=text_config(tf.MistralConfig, processor.tokenizer),
        image_token_id=place(processor.tokenizer, "<image>"),
        pad_token_id=PAD,
    )
    return Tiny(tf.Idefics2ForConditionalGeneration(config), processor)


def idefics3() -> Tiny:
    words = tokenizer([*IDEFICS, *TILES])
    pictures = tf.Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    processor = tf.Idefics3Processor(
        pictures, words, image_seq_len=4, chat_template=template("<image>")
    )
    config = tf.Idefics3Config(**idefics3_fields(processor))
    return Tiny(tf.Idefics3ForConditionalGeneration(config), processor)


def idefics3_fields(processor: Any) -> dict[str, Any]:
    return {
        "vision_config": {**EYES, "image_size": 32, "patch_size": 8},
        "text_config": text_config(tf.LlamaConfig, processor.tokenizer),
        "scale_factor": 2,
        "image_token_id": place(processor.tokenizer, "<image>"),
        "pad_token_id": PAD,
    }


def smolvlm() -> Tiny:
    names = ["fake_image_token", "image_token", "end_of_utterance_token", "global_image_token"]
    words = tokenizer([*IDEFICS, *TILES], dict(zip([*names, "video_token"], IDEFICS, strict=True)))
    pictures = tf.SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    processor = image_only(
        tf.SmolVLMProcessor, pictures, words, image_seq_len=4, chat_template=template("<image>")
    )
    config = tf.SmolVLMConfig(**idefics3_fields(processor))
    return Tiny(tf.SmolVLMForConditionalGeneration(config), processor)


QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_EYES = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 8}


def qwen(kinds: tuple[Any, Any, Any], eyes: Mapping[str, Any], rope: Mapping[str, Any]) -> Tiny:
    """A Qwen-VL of the given (processor, config, model) kinds."""
    words = tokenizer(QWEN)
    start, _, image, video = (place(words, token) for token in QWEN)
    pictures = tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 1024, "longest_edge": 4096},
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
    )
    processor = image_only(
        kinds[0], pictures, words, chat_template=template("".join(QWEN[i] for i in (0, 2, 1)))
    )
    text = {**TEXT, "vocab_size": len(words), **rope}
    config = kinds[1](
        text_config=text,
        vision_config={**QWEN_EYES, "spatial_merge_size": 2, "temporal_patch_size": 2, **eyes},
        vision_start_token_id=start,
        image_token_id=image,
        video_token_id=video,
    )
    return Tiny(kinds[2](config), processor)


def rope(section: list[int], **more: Any) -> dict[str, Any]:
    parameters = {"rope_type": "default", "mrope_section": section, "rope_theta": 10000.0, **more}
    return {"rope_parameters": parameters}


def qwen2_vl() -> Tiny:
    kinds = (tf.Qwen2VLProcessor, tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration)
    return qwen(kinds, {"embed_dim": 32, "mlp_ratio": 2}, rope([1, 1, 2]))


def qwen2_5_vl() -> Tiny:
    kinds = (tf.Qwen2_5_VLProcessor, tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration)
    eyes = {
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return qwen(kinds, eyes, rope([1, 1, 2]))


def qwen3_vl() -> Tiny:
    kinds = (tf.Qwen3VLProcessor, tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration)
    eyes = {
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return qwen(kinds, eyes, {"head_dim": 8, **rope([2, 1, 1], mrope_interleaved=True)})


def gemma3() -> Tiny:
    tokens = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    names = dict(zip(["boi_token", "eoi_token", "image_token"], tokens, strict=True))
    words = tokenizer(tokens, names)
    start, end, image = (place(words, token) for token in tokens)
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size=SQUARE),
        words,
        image_seq_length=4,
        chat_template=template(tokens[0]),
    )
    config = tf.Gemma3Config(
        text_config={**TEXT, "vocab_size": len(words), "head_dim": 8, "sliding_window": 64},
        vision_config={**EYES, "image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
    )
    return Tiny(tf.Gemma3ForConditionalGeneration(config), processor)


def paligemma() -> Tiny:
    words = tokenizer(["<image>"], {"image_token": "<image>"})
    pictures = tf.SiglipImageProcessorPil(size=SQUARE)
    pictures.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(pictures, words, chat_template=template("<image>"))
    config = tf.PaliGemmaConfig(
        text_config=text_config(tf.GemmaConfig, processor.tokenizer, head_dim=8),
        vision_config=tf.SiglipVisionConfig(
            **EYES, image_size=32, patch_size=8, vision_use_head=False, projection_dim=32
        ),
        image_token_index=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
        pad_token_id=PAD,
    )
    model = tf.PaliGemmaForConditionalGeneration(config)
    return Tiny(model, processor, takes_text=False)


def internvl() -> Tiny:
    tokens = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    names = ["start_image_token", "end_image_token", "context_image_token", "video_token"]
    words = tokenizer(tokens, dict(zip(names, tokens, strict=True)))
    pictures = tf.GotOcr2ImageProcessorPil(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = image_only(
        tf.InternVLProcessor,
        pictures,
        words,
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n"),
    )
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**EYES, image_size=[32, 32], patch_size=[8, 8]),
        text_config=text_config(tf.Qwen2Config, words),
        image_token_id=place(words, tokens[2]),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return Tiny(tf.InternVLForConditionalGeneration(config), processor)


def mllama() -> Tiny:
    words = tokenizer(["<|image|>", "<|python_tag|>"], {"image_token": "<|image|>"})
    processor = tf.MllamaProcessor(
        tf.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4),
        words,
        chat_template=template("<|image|>"),
    )
    shapes = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    eyes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "max_num_tiles": 4,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": shapes,
    }
    text = {
        **TEXT,
        "vocab_size": len(words),
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = tf.MllamaConfig(
        vision_config=eyes, text_config=text, image_token_index=place(words, "<|image|>")
    )
    return Tiny(tf.MllamaForConditionalGeneration(config), processor)


def blip2() -> Tiny:
    """BLIP-2 ships no chat template: it takes chat as far as a user sets one."""
    words = tokenizer(["<image>"])
    processor = tf.Blip2Processor(tf.BlipImageProcessorPil(size=SQUARE), words, num_query_tokens=4)
    # The processor itself puts the picture before the words.
    processor.chat_template = template("")
    inner = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = tf.Blip2Config(
        vision_config={**EYES, "image_size": 32, "patch_size": 8},
        qformer_config={
            **inner,
            "intermediate_size": 64,
            "encoder_hidden_size": 32,
            "vocab_size": 64,
        },
        text_config=tf.OPTConfig(
            **inner,
            ffn_dim=64,
            word_embed_proj_dim=32,
            max_position_embeddings=512,
            vocab_size=len(processor.tokenizer),
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        ),
        num_query_tokens=4,
        image_token_index=place(processor.tokenizer, "<image>"),
    )
    return Tiny(tf.Blip2ForConditionalGeneration(config), processor, takes_text=False)


ARCHITECTURES: Mapping[str, Callable[[], Tiny]] = {
    make.__name__: make
    for make in (
        llava,
        llava_next,
        llava_onevision,
        idefics2,
        idefics3,
        smolvlm,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        gemma3,
        paligemma,
        internvl,
        mllama,
        blip2,
    )
}


@cache
def build(name: str) -> Tiny:
    """The architecture of this name, the same weights each time, ready to answer."""
    torch.manual_seed(7)
    tiny = ARCHITECTURES[name]()
    tiny.model.eval()
    config = tiny.model.generation_config
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, BOS, EOS
    return tiny
