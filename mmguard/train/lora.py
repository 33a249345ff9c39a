"""Low-rank adapters (LoRA, arXiv 2106.09685) for a causal language model, in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lora(nn.Module):
    """A frozen linear layer plus `scale * up(down(x))`; `up` starts at zero, so nothing changes."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.down.to(x.dtype))
        more = nn.functional.linear(low, self.up.to(x.dtype))
        made: Tensor = self.base(x) + self.scale * more
        return made


def graft(model: Any, rank: int, scale: float, first: int) -> dict[str, Lora]:
    """Adapters on the linear parts of every layer from number `first` on; the rest is frozen.

    Layers below `first` need no backward pass at all, which halves a step's time.
    """
    model.requires_grad_(False)
    found: dict[str, Lora] = {}
    for number, layer in enumerate(model.model.layers):
        for name, part in list(layer.named_modules()) if number >= first else ():
            if name.rpartition(".")[2] in PARTS:
                grown = Lora(part, rank, scale)
                layer.set_submodule(name, grown)
                found[f"model.layers.{number}.{name}"] = grown
    return found


def weights(grown: Mapping[str, Lora]) -> dict[str, Tensor]:
    """The adapters as tensors in half precision, named by the layer they add to."""
    return {
        f"{name}.{side}": getattr(part, side).detach().to(torch.float16).contiguous()
        for name, part in grown.items()
        for side in ("down", "up")
    }


def restore(grown: Mapping[str, Lora], saved: Mapping[str, Tensor]) -> None:
    """Sets the adapters to what `weights` gave."""
    with torch.no_grad():
        for key, value in saved.items():
            name, _, side = key.rpartition(".")
            getattr(grown[name], side).copy_(value)
