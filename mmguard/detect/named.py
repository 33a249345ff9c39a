"""Well-known guards by name, in this process: to name one fetches its weights from the hub.

For another place, device or setting write a `detector.yaml` of kind `guard` instead.
"""

from __future__ import annotations

from functools import partial

from mmguard.detect.guards import name_guard
from mmguard.detect.moderation import name_moderation

llama_guard_3_1b = partial(
    name_guard, "llama-guard-3-1b", "llama-guard-3", "meta-llama/Llama-Guard-3-1B"
)
llama_guard_3_8b = partial(
    name_guard, "llama-guard-3-8b", "llama-guard-3", "meta-llama/Llama-Guard-3-8B"
)
llama_guard_3_11b_vision = partial(
    name_guard,
    "llama-guard-3-11b-vision",
    "llama-guard-3-vision",
    "meta-llama/Llama-Guard-3-11B-Vision",
)
llama_guard_4_12b = partial(
    name_guard, "llama-guard-4-12b", "llama-guard-4", "meta-llama/Llama-Guard-4-12B"
)
qwen3guard_gen_0_6b = partial(
    name_guard, "qwen3guard-gen-0.6b", "qwen3guard", "Qwen/Qwen3Guard-Gen-0.6B"
)
qwen3guard_gen_4b = partial(name_guard, "qwen3guard-gen-4b", "qwen3guard", "Qwen/Qwen3Guard-Gen-4B")
qwen3guard_gen_8b = partial(name_guard, "qwen3guard-gen-8b", "qwen3guard", "Qwen/Qwen3Guard-Gen-8B")
shieldgemma_2b = partial(name_guard, "shieldgemma-2b", "shieldgemma", "google/shieldgemma-2b")
shieldgemma_9b = partial(name_guard, "shieldgemma-9b", "shieldgemma", "google/shieldgemma-9b")
shieldgemma_27b = partial(name_guard, "shieldgemma-27b", "shieldgemma", "google/shieldgemma-27b")
granite_guardian_3_1_2b = partial(
    name_guard,
    "granite-guardian-3.1-2b",
    "granite-guardian-3",
    "ibm-granite/granite-guardian-3.1-2b",
)
granite_guardian_3_1_8b = partial(
    name_guard,
    "granite-guardian-3.1-8b",
    "granite-guardian-3",
    "ibm-granite/granite-guardian-3.1-8b",
)
granite_guardian_3_2_5b = partial(
    name_guard,
    "granite-guardian-3.2-5b",
    "granite-guardian-3",
    "ibm-granite/granite-guardian-3.2-5b",
)
granite_guardian_3_3_8b = partial(
    name_guard,
    "granite-guardian-3.3-8b",
    "granite-guardian-3.3",
    "ibm-granite/granite-guardian-3.3-8b",
)
openai_moderation = partial(name_moderation, "openai-moderation")
