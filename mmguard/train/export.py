"""From trained network to eight-bit ONNX: the same function, its weights quantised.

Products have a scale for each output; the table of words has one for all, and is stored
as it was learnt from, unsigned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmguard.train.layout import Block, Norm, Product, Weights, Words, lay_out
from mmguard.train.network import Network

if TYPE_CHECKING:
    from numpy.typing import NDArray


def export(network: Network) -> bytes:
    """The network as an ONNX model with eight-bit weights, its activations quantised as it runs."""
    return lay_out(weights_of(network))


@torch.no_grad()
def weights_of(network: Network) -> Weights:
    """The network's weights in eight bits."""
    body, config = network.body, network.body.config
    tables = body.embeddings
    return Weights(
        quantise_words(array(tables.word_embeddings.weight)),
        array(tables.position_embeddings.weight),
        array(tables.token_type_embeddings.weight),
        norm(tables.LayerNorm),
        [block(layer) for layer in body.encoder.layer],
        product(network.heads.weight, network.heads.bias),
        config.num_attention_heads,
        config.layer_norm_eps,
    )


def block(layer: Any) -> Block:
    attention, out = layer.attention.self, layer.attention.output
    linears = (attention.query, attention.key, attention.value)
    # The scale of the attention goes into the queries.
    scales = (attention.attention_head_size**-0.5, 1.0, 1.0)
    pairs = list(zip(linears, scales, strict=True))
    return Block(
        product(
            torch.cat([part.weight * by for part, by in pairs]),
            torch.cat([part.bias * by for part, by in pairs]),
        ),
        product(out.dense.weight, out.dense.bias),
        norm(out.LayerNorm),
        product(layer.intermediate.dense.weight, layer.intermediate.dense.bias),
        product(layer.output.dense.weight, layer.output.dense.bias),
        norm(layer.output.LayerNorm),
    )


def product(weight: Tensor, bias: Tensor) -> Product:
    """Weights [out, in] rounded to eight bits, symmetric about zero, a scale an output."""
    found = array(weight).T
    most = np.abs(found).max(0)
    scale = np.where(most > 0, most / np.float32(127), np.float32(1)).astype(np.float32)
    return Product(np.clip(np.rint(found / scale), -127, 127).astype(np.int8), scale, array(bias))


def quantise_words(table: NDArray[np.float32]) -> Words:
    """A table [words, width] in eight bits: one scale, one zero point."""
    low, high = min(float(table.min()), 0.0), max(float(table.max()), 0.0)
    scale = np.float32((high - low) / 255 or 1)
    zero = np.rint(-low / scale)
    rows = np.clip(np.rint(table / scale) + zero, 0, 255).astype(np.uint8)
    return Words(rows, np.array(scale), np.array(zero, np.uint8))


def norm(layer: Any) -> Norm:
    return Norm(array(layer.weight), array(layer.bias))


def array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.detach().cpu().float().numpy()
    return found
