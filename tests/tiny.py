"""Real MLLM architectures, tiny: random weights, and every part of their code runs.

The sizes are the smallest that each architecture accepts. They answer nonsense, the same
each time, and other nonsense for another picture: good for comparing ways to run a model,
and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from tests.parts import (
    BOS,
    ENDS,
    EOS,
    EYES,
    PAD,
    SQUARE,
    TEXT,
    Tiny,
    clip_eyes,
    enliven,
    image_only,
    place,
    siglip_eyes,
    template,
    text_config,
    tf,
    tokenizer,
)

__all__ = ["ARCHITECTURES", "BOS", "EOS", "PAD", "Tiny", "build"]

IMAGE = {"image_token": "<image>"}
PINS = [[32, 64], [64, 32], [64, 64]]
# How the processors of the LLaVA family count a picture's tokens.
CLIP_TOKENS = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def llava_parts(**more: Any) -> tuple[Any, dict[str, Any]]:
    """LLaVA's processor, and the fields of a config that fits it."""
    words = tokenizer(["<image>"], IMAGE)
    pictures = tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    chat = template("<image>\n")
    processor = tf.LlavaProcessor(pictures, words, **CLIP_TOKENS, chat_template=chat)
    fields = {
        "vision_config": clip_eyes(),
        "text_config": text_config(tf.LlamaConfig, words),
        "image_token_index": place(words, "<image>"),
    }
    return processor, {**fields, **more}


def llava() -> Tiny:
    processor, fields = llava_parts()
    return Tiny(tf.LlavaForConditionalGeneration(tf.LlavaConfig(**fields)), processor)


def vipllava() -> Tiny:
    processor, fields = llava_parts(vision_feature_layer=[-1, -2])
    return Tiny(tf.VipLlavaForConditionalGeneration(tf.VipLlavaConfig(**fields)), processor)


def llava_next() -> Tiny:
    words = tokenizer(["<image>"], IMAGE)
    pictures = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=PINS
    )
    chat = template("<image>\n")
    processor = tf.LlavaNextProcessor(pictures, words, **CLIP_TOKENS, chat_template=chat)
    config = tf.LlavaNextConfig(
        vision_config=clip_eyes(),
        text_config=text_config(tf.LlamaConfig, words),
        image_token_index=place(words, "<image>"),
        image_grid_pinpoints=PINS,
    )
    return Tiny(tf.LlavaNextForConditionalGeneration(config), processor)


def llava_onevision() -> Tiny:
    words = tokenizer(["<image>", "<video>"], {**IMAGE, "video_token": "<video>"})
    pictures = tf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINS)
    how = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    processor = image_only(tf.LlavaOnevisionProcessor, pictures, words, "<image>\n", **how)
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip_eyes(),
        text_config=text_config(tf.Qwen2Config, words),
        image_token_index=place(words, "<image>"),
        video_token_index=place(words, "<video>"),
        image_grid_pinpoints=PINS,
        vision_feature_layer=-1,
    )
    return Tiny(tf.LlavaOnevisionForConditionalGeneration(config), processor, stock=False)


TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>"]
EDGES = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def idefics2() -> Tiny:
    pictures = tf.Idefics2ImageProcessorPil(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False
    )
    processor = tf.Idefics2Processor(
        pictures, tokenizer(IDEFICS[:3]), image_seq_len=4, chat_template=template("<image>")
    )
    between = {
        "hidden_size": 32,
        "resampler_n_latents": 4,
        "resampler_depth": 1,
        "resampler_n_heads": 4,
        "num_key_value_heads": 2,
        "resampler_head_dim": 8,
    }
    config = tf.Idefics2Config(
        vision_config={**EYES, "image_size": 32, "patch_size": 8},
        perceiver_config=between,
        text_config=text_config(tf.MistralConfig, processor.tokenizer),
        image_token_id=place(processor.tokenizer, "<image>"),
        pad_token_id=PAD,
    )
    return Tiny(tf.Idefics2ForConditionalGeneration(config), processor)


def idefics3_fields(processor: Any) -> dict[str, Any]:
    return {
        "vision_config": {**EYES, "image_size": 32, "patch_size": 8},
        "text_config": text_config(tf.LlamaConfig, processor.tokenizer),
        "scale_factor": 2,
        "image_token_id": place(processor.tokenizer, "<image>"),
        "pad_token_id": PAD,
    }


def idefics3() -> Tiny:
    words = tokenizer([*IDEFICS, *TILES])
    processor = tf.Idefics3Processor(
        tf.Idefics3ImageProcessorPil(**EDGES),
        words,
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    config = tf.Idefics3Config(**idefics3_fields(processor))
    return Tiny(tf.Idefics3ForConditionalGeneration(config), processor)


def smolvlm() -> Tiny:
    names = ["fake_image_token", "image_token", "end_of_utterance_token", "global_image_token"]
    words = tokenizer([*IDEFICS, *TILES], dict(zip([*names, "video_token"], IDEFICS, strict=True)))
    pictures = tf.SmolVLMImageProcessorPil(**EDGES)
    processor = image_only(tf.SmolVLMProcessor, pictures, words, "<image>", image_seq_len=4)
    config = tf.SmolVLMConfig(**idefics3_fields(processor))
    return Tiny(tf.SmolVLMForConditionalGeneration(config), processor, stock=False)


QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_EYES = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def qwen(name: str, eyes: Mapping[str, Any], section: list[int], **text: Any) -> Tiny:
    """The Qwen-VL of this name; `section` splits its rotary halves by axis."""
    words = tokenizer(QWEN)
    start, end, image, video = (place(words, token) for token in QWEN)
    pictures = tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 1024, "longest_edge": 4096},
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
    )
    chat = QWEN[0] + QWEN[2] + QWEN[1]
    processor = image_only(getattr(tf, f"{name}Processor"), pictures, words, chat)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    rope |= text.pop("rope", {})
    config = getattr(tf, f"{name}Config")(
        text_config={**TEXT, "vocab_size": len(words), "rope_parameters": rope, **text},
        vision_config={**QWEN_EYES, **eyes},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    model = getattr(tf, f"{name}ForConditionalGeneration")(config)
    return Tiny(model, processor, stock=False)


def qwen2_vl() -> Tiny:
    return qwen("Qwen2VL", {"embed_dim": 32, "mlp_ratio": 2}, [1, 1, 2])


def qwen2_5_vl() -> Tiny:
    eyes = {
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return qwen("Qwen2_5_VL", eyes, [1, 1, 2])


def qwen3_vl() -> Tiny:
    eyes = {
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return qwen("Qwen3VL", eyes, [2, 1, 1], head_dim=8, rope={"mrope_interleaved": True})


def gemma3() -> Tiny:
    names = ["boi_token", "eoi_token", "image_token"]
    tokens = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    words = tokenizer(tokens, dict(zip(names, tokens, strict=True)))
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
        tie_word_embeddings=False,
    )
    return Tiny(tf.Gemma3ForConditionalGeneration(config), processor)


def paligemma() -> Tiny:
    pictures = tf.SiglipImageProcessorPil(size=SQUARE)
    pictures.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(
        pictures, tokenizer(["<image>"], IMAGE), chat_template=template("<image>")
    )
    config = tf.PaliGemmaConfig(
        text_config=text_config(tf.GemmaConfig, processor.tokenizer, head_dim=8),
        vision_config=siglip_eyes(projection_dim=32),
        image_token_index=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return Tiny(tf.PaliGemmaForConditionalGeneration(config), processor, takes_text=False)


def internvl() -> Tiny:
    tokens = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    names = ["start_image_token", "end_image_token", "context_image_token", "video_token"]
    words = tokenizer(tokens, dict(zip(names, tokens, strict=True)))
    pictures = tf.GotOcr2ImageProcessorPil(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
    )
    chat = "<IMG_CONTEXT>\n"
    processor = image_only(tf.InternVLProcessor, pictures, words, chat, image_seq_length=4)
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**EYES, image_size=[32, 32], patch_size=[8, 8]),
        text_config=text_config(tf.Qwen2Config, words),
        image_token_id=place(words, tokens[2]),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return Tiny(tf.InternVLForConditionalGeneration(config), processor, stock=False)


def deepseek_vl() -> Tiny:
    words = tokenizer(["<image>"], IMAGE)
    processor = tf.DeepseekVLProcessor(
        tf.DeepseekVLImageProcessorPil(size=SQUARE, min_size=8),
        words,
        chat_template=template("<image>"),
        num_image_tokens=16,
    )
    config = tf.DeepseekVLConfig(
        text_config=text_config(tf.LlamaConfig, words),
        vision_config=siglip_eyes(),
        image_token_id=place(words, "<image>"),
        tie_word_embeddings=False,
    )
    return Tiny(tf.DeepseekVLForConditionalGeneration(config), processor)


SHAPES = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def mllama() -> Tiny:
    words = tokenizer(["<|image|>", "<|python_tag|>"], {"image_token": "<|image|>"})
    processor = tf.MllamaProcessor(
        tf.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4),
        words,
        chat_template=template("<|image|>"),
    )
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
        "supported_aspect_ratios": SHAPES,
    }
    text = {**TEXT, "vocab_size": len(words), "num_hidden_layers": 3, "cross_attention_layers": [1]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    config = tf.MllamaConfig(
        vision_config=eyes, text_config=text, image_token_index=place(words, "<|image|>")
    )
    return Tiny(tf.MllamaForConditionalGeneration(config), processor)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def blip2_with(config: Callable[[int], Any]) -> Tiny:
    """BLIP-2 ships no chat template: it takes chat as far as a user sets one."""
    words = tokenizer(["<image>"])
    processor = tf.Blip2Processor(tf.BlipImageProcessorPil(size=SQUARE), words, num_query_tokens=4)
    # The processor itself puts the picture before the words.
    processor.chat_template = template("")
    between = {**SMALL, "intermediate_size": 64, "encoder_hidden_size": 32, "vocab_size": 64}
    whole = tf.Blip2Config(
        vision_config={**EYES, "image_size": 32, "patch_size": 8},
        qformer_config=between,
        text_config=config(len(processor.tokenizer)),
        num_query_tokens=4,
        image_token_index=place(processor.tokenizer, "<image>"),
        tie_word_embeddings=False,
    )
    model = tf.Blip2ForConditionalGeneration(whole)
    return Tiny(model, processor, takes_text=False, pictures=1)


def blip2() -> Tiny:
    more = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512}
    return blip2_with(lambda size: tf.OPTConfig(**SMALL, **more, **ENDS, vocab_size=size))


def blip2_t5() -> Tiny:
    """An encoder and a decoder: what it generates does not begin with the prompt."""
    more = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return blip2_with(
        lambda size: tf.T5Config(**more, **ENDS, vocab_size=size, decoder_start_token_id=PAD)
    )


MAKERS: tuple[Callable[[], Tiny], ...] = (
    llava,
    vipllava,
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
    deepseek_vl,
    mllama,
    blip2,
    blip2_t5,
)
ARCHITECTURES: Mapping[str, Callable[[], Tiny]] = {make.__name__: make for make in MAKERS}


@cache
def build(name: str) -> Tiny:
    """The architecture of this name, the same weights each time, ready to answer."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tiny = ARCHITECTURES[name]()
        enliven(tiny.model)
    config = tiny.model.eval().generation_config
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, BOS, EOS
    return tiny
