"""From trained network to eight-bit ONNX: the same function, laid out for one CPU core.

A window is run by itself, so there is nothing to mask; queries, keys and values are one
product; the table of words is cut to those that a text can use.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmguard.train.network import Network

OPSET = 17


class Layer(nn.Module):
    """One BERT layer over [batch, length, width]."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self.heads, self.size = attention.num_attention_heads, attention.attention_head_size
        # The scale of the product goes into the queries.
        scale = torch.tensor([self.size**-0.5, 1.0, 1.0])
        weights = [part.weight * by for part, by in zip(parts, scale, strict=True)]
        biases = [part.bias * by for part, by in zip(parts, scale, strict=True)]
        self.mix = linear(torch.cat(weights), torch.cat(biases))
        self.out, self.norm = layer.attention.output.dense, layer.attention.output.LayerNorm
        self.wide, self.narrow = layer.intermediate.dense, layer.output.dense
        self.last = layer.output.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        mixed = self.mix(x).view(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        weights = (mixed[0] @ mixed[1].transpose(-1, -2)).softmax(-1)
        seen = (weights @ mixed[2]).transpose(1, 2).reshape(batch, length, width)
        x = self.norm(x + self.out(seen))
        return cast(Tensor, self.last(x + self.narrow(F.gelu(self.wide(x)))))


class Flat(nn.Module):
    """`Network` without a mask: ids and types of one window, [1, length], to [1, heads]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        words = network.body.embeddings
        self.words, self.places = words.word_embeddings, words.position_embeddings
        self.types, self.norm = words.token_type_embeddings, words.LayerNorm
        self.layers = nn.ModuleList(Layer(layer) for layer in network.body.encoder.layer)
        self.heads = network.heads

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        places = self.places.weight[: input_ids.shape[1]]
        x = self.norm(self.words(input_ids) + self.types(token_type_ids) + places)
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.heads(torch.cat((x[:, 0], x.mean(1)), dim=-1)))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return made


def export(network: Network) -> bytes:
    """The network as an ONNX model with eight-bit weights, its activations quantised as it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as name:
        full, small = Path(name, "full.onnx"), Path(name, "small.onnx")
        write_full(network, full)
        quantize_dynamic(full, small, weight_type=QuantType.QInt8, per_channel=True)
        return label(small, layers=len(network.body.encoder.layer))


def label(path: Path, **facts: int) -> bytes:
    """The model with facts about it among its metadata."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    return bytes(model.SerializeToString(deterministic=True))


def write_full(network: Network, path: Path) -> None:
    window = torch.ones(1, 16, dtype=torch.long)
    flat = Flat(network.cpu().float()).eval()
    with warnings.catch_warnings():
        # The tracing exporter is deprecated; the graph of its heir cannot be quantised yet.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            flat,
            (window, window),
            str(path),
            input_names=["input_ids", "token_type_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": {1: "length"}, "token_type_ids": {1: "length"}},
            dynamo=False,
            opset_version=OPSET,
        )
