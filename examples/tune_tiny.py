"""Tune a tiny vision-language model of random weights on a job's exports, with TRL.

    mmguard generate examples/prompts.jsonl --out made
    mmguard generate export made --format trl-sft --format trl-dpo --parquet
    python examples/tune_tiny.py made/export

For a real model, load it where `make_llava` is called, and take more than two steps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from mmguard.bench.llava import Size, make_llava

TINY = Size(layers=1, width=32, side=112)
# Tokens of a picture must not be cut off, so there is no longest length.
USUAL: dict[str, Any] = {
    "max_length": None,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
}


def tune(folder: Path, steps: int = 2) -> dict[str, float]:
    """Supervised steps, then preference steps where there are preferences; the losses of both."""
    import datasets
    import trl as library

    trl: Any = library

    found = {}
    for name, trainer, config in (
        ("trl-sft", trl.SFTTrainer, trl.SFTConfig),
        ("trl-dpo", trl.DPOTrainer, trl.DPOConfig),
    ):
        data = folder / name / "train.parquet"
        if not data.is_file():
            continue
        model, processor = make_llava(TINY)
        other = {"ref_model": make_llava(TINY)[0]} if name == "trl-dpo" else {}
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset("parquet", data_files=str(data), cache_dir=cache)["train"]
            how = config(cache, max_steps=steps, per_device_train_batch_size=2, bf16=False, **USUAL)
            run = trainer(model, args=how, train_dataset=rows, processing_class=processor, **other)
            found[name] = run.train().training_loss
    return found


if __name__ == "__main__":
    for name, loss in tune(Path(sys.argv[1])).items():
        print(f"{name}: loss {loss:.3f}")
