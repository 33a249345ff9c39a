"""Small tuned weights on top of `embedded`'s language model: a LoRA bundle, merged when loaded.

A bundle is a folder with `adapter.yaml` (the fields of a detector's manifest, kind `adapter`),
weights whose hash is verified, `CARD.md` and `eval.json`. Its settings name the sha256 of the
only base weights that it fits, and the scale of W + scale * up @ down (arXiv 2106.09685).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmguard.bundles import Bundle, load_bundle
from mmguard.errors import BundleError

WEIGHTS = "adapter.safetensors"


def load_adapter(name: str, base: str) -> Bundle:
    """The shipped adapter of this name, or any by its folder; `base` is the sha256 it must fit."""
    bundle = load_bundle(name, "adapter")
    wanted = bundle.settings.get("base")
    if wanted != base:
        raise BundleError(
            f"adapter {bundle.name!r} was made for base weights with sha256 {wanted}, not {base}:"
            " train it anew for these, or install those"
        )
    return bundle


def adapt(model: Any, bundle: Bundle) -> Any:
    """A model with the adapter merged in; `model` is unchanged, and shares what stays equal."""
    from safetensors.torch import load

    parts = load(bundle.read(WEIGHTS))
    names = sorted(name.removesuffix(".down") for name in parts if name.endswith(".down"))
    known = dict(model.named_parameters())
    changed = {f"{name}.weight" for name in names}
    if len(parts) != 2 * len(names) or not names or not changed <= set(known):
        raise BundleError(f"adapter {bundle.name!r} does not fit the layers of its base")
    made = copy.deepcopy(model, {id(p): p for name, p in known.items() if name not in changed})
    merge(dict(made.named_parameters()), parts, names, float(bundle.settings["scale"]))
    return made


def merge(
    weights: Mapping[str, Any], parts: Mapping[str, Any], names: list[str], scale: float
) -> None:
    """Adds each product to its weight, in full precision until the sum is known."""
    import torch

    with torch.no_grad():
        for name in names:
            weight = weights[f"{name}.weight"]
            more = parts[f"{name}.up"].float() @ parts[f"{name}.down"].float()
            if more.shape != weight.shape:
                raise BundleError(f"{name}: {tuple(more.shape)} is added to {tuple(weight.shape)}")
            weight.copy_(weight.float() + scale * more)
