"""Eight-bit weights as an ONNX graph for one CPU core, each step one kernel of ONNX Runtime.

A window is run by itself, so there is nothing to mask. An input is quantised once for
queries, keys and values; attention reads them as they are, no tensor is turned round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# Attention is an operator of its own from 23 on.
OPSET, IR = 23, 10
RUNTIME = "com.microsoft"


@dataclass(frozen=True)
class Product:
    """x @ (weight * scale) + bias: `weight` is [in, out] in eight bits, the others [out]."""

    weight: NDArray[np.int8]
    scale: Floats
    bias: Floats

    def columns(self, start: int, end: int) -> Product:
        return Product(*(getattr(self, f.name)[..., start:end] for f in fields(self)))


@dataclass(frozen=True)
class Norm:
    """Of a layer: what its normalised rows are multiplied by, and what is added; each [width]."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Block:
    """One BERT layer; `mix` makes queries, keys and values, the queries scaled already."""

    mix: Product
    out: Product
    norm: Norm
    wide: Product
    narrow: Product
    last: Norm


@dataclass(frozen=True)
class Words:
    """The table of words: (rows - zero) * scale, rows [words, width] in eight bits."""

    rows: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]


@dataclass(frozen=True)
class Weights:
    """All that the network knows; `places` [longest, width], `types` [2, width]."""

    words: Words
    places: Floats
    types: Floats
    norm: Norm
    blocks: Sequence[Block]
    heads: Product
    attention: int
    epsilon: float


def lay_out(weights: Weights) -> bytes:
    """The network as a model: ids and types of one window, [1, length], to logits [1, heads]."""
    from onnx import TensorProto, helper

    graph = Graph()
    x = embed(graph, weights)
    for i, block in enumerate(weights.blocks):
        x = transform(graph, f"layers.{i}", x, block, weights)
    graph.heads(x, weights.heads)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [1, "length"])
        for name in ("input_ids", "token_type_ids")
    ]
    size = len(weights.heads.bias)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, size])
    made = helper.make_graph(graph.nodes, "encoder", ids, [logits], graph.kept)
    sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
    model = helper.make_model(made, opset_imports=sets, ir_version=IR)
    helper.set_model_props(model, {"layers": str(len(weights.blocks))})
    return bytes(model.SerializeToString(deterministic=True))


def embed(graph: Graph, weights: Weights) -> str:
    """Words, types and places of a window, [1, length, width]."""
    words = weights.words
    table = graph.keep("words.rows", words.rows)
    scale, zero = graph.keep("words.scale", words.scale), graph.keep("words.zero", words.zero)
    rows = graph.add("Gather", table, "input_ids")
    known = graph.add("DequantizeLinear", rows, scale, zero)
    types = graph.add("Gather", graph.keep("types", weights.types), "token_type_ids")
    length = graph.add("Shape", "input_ids", start=1, end=2)
    places = graph.add("Slice", graph.keep("places", weights.places), graph.ends(0), length)
    both = graph.add("Add", graph.add("Add", known, types), places)
    return graph.norm("norm", both, weights.norm, weights.epsilon)


def transform(graph: Graph, name: str, x: str, block: Block, weights: Weights) -> str:
    """One layer over [1, length, width]."""
    width, count = len(block.out.bias), weights.attention
    eight = graph.spread("DynamicQuantizeLinear", 3, x)
    parts = [
        graph.multiply(f"{name}.{part}", eight, block.mix.columns(i * width, (i + 1) * width))
        for i, part in enumerate(("query", "key", "value"))
    ]
    seen = graph.add("Attention", *parts, q_num_heads=count, kv_num_heads=count, scale=1.0)
    seen = graph.add("Add", x, graph.product(f"{name}.out", seen, block.out))
    x = graph.norm(f"{name}.norm", seen, block.norm, weights.epsilon)
    wide = graph.add("Gelu", graph.product(f"{name}.wide", x, block.wide))
    both = graph.add("Add", x, graph.product(f"{name}.narrow", wide, block.narrow))
    return graph.norm(f"{name}.last", both, block.last, weights.epsilon)


class Graph:
    """Nodes and constants, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.kept: list[Any] = []

    def keep(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.kept.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def ends(self, value: int) -> str:
        name = f"at.{value}"
        known = any(found.name == name for found in self.kept)
        return name if known else self.keep(name, np.array([value]))

    def add(self, kind: str, *inputs: str, domain: str = "", **how: Any) -> str:
        """A node of one output, whose name is returned."""
        return self.spread(kind, 1, *inputs, domain=domain, **how)[0]

    def spread(
        self, kind: str, count: int, *inputs: str, domain: str = "", **how: Any
    ) -> tuple[str, ...]:
        from onnx import helper

        names = tuple(f"{kind}.{len(self.nodes)}.{i}" for i in range(count))
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **how))
        return names

    def norm(self, name: str, x: str, norm: Norm, epsilon: float) -> str:
        weight, bias = (self.keep(f"{name}.{f.name}", getattr(norm, f.name)) for f in fields(norm))
        return self.add("LayerNormalization", x, weight, bias, epsilon=epsilon)

    def product(self, name: str, x: str, by: Product) -> str:
        """Of floats, quantised as they come."""
        weight, scale, bias = self.store(name, by)
        return self.add("DynamicQuantizeMatMul", x, weight, scale, "", bias, domain=RUNTIME)

    def multiply(self, name: str, eight: Sequence[str], by: Product) -> str:
        """Of what is quantised already: values, scale and zero point."""
        weight, scale, bias = self.store(name, by)
        found, unit, zero = eight
        inputs = (found, weight, unit, scale, zero, "", bias)
        return self.add("MatMulIntegerToFloat", *inputs, domain=RUNTIME)

    def store(self, name: str, by: Product) -> list[str]:
        return [self.keep(f"{name}.{f.name}", getattr(by, f.name)) for f in fields(by)]

    def heads(self, x: str, by: Product) -> None:
        """The logits: of the first token beside the mean of all."""
        from onnx import helper

        first = self.add("Squeeze", self.add("Slice", x, *map(self.ends, (0, 1, 1))), self.ends(1))
        mean = self.add("ReduceMean", x, self.ends(1), keepdims=0)
        names = self.store("heads", by)
        inputs = [self.add("Concat", first, mean, axis=1), *names[:2], "", names[2]]
        self.nodes.append(
            helper.make_node("DynamicQuantizeMatMul", inputs, ["logits"], domain=RUNTIME)
        )


def unpack(model: bytes) -> Weights:
    """The weights of a model that `lay_out` made."""
    import onnx

    read = onnx.load_model_from_string(model)
    found = {kept.name: onnx.numpy_helper.to_array(kept) for kept in read.graph.initializer}
    layers = int(next(fact.value for fact in read.metadata_props if fact.key == "layers"))
    node = {node.op_type: node for node in read.graph.node}
    told = {a.name: a for kind in ("Attention", "LayerNormalization") for a in node[kind].attribute}
    return Weights(
        Words(*(found[f"words.{f.name}"] for f in fields(Words))),
        found["places"],
        found["types"],
        Norm(*parts(found, "norm", Norm)),
        [unpack_block(found, f"layers.{i}") for i in range(layers)],
        Product(*parts(found, "heads", Product)),
        told["q_num_heads"].i,
        told["epsilon"].f,
    )


def parts(found: dict[str, Any], name: str, kind: Any) -> list[Any]:
    return [found[f"{name}.{f.name}"] for f in fields(kind)]


def unpack_block(found: dict[str, Any], name: str) -> Block:
    def product(part: str) -> Product:
        return Product(*parts(found, f"{name}.{part}", Product))

    def norm(part: str) -> Norm:
        return Norm(*parts(found, f"{name}.{part}", Norm))

    mixed = [parts(found, f"{name}.{part}", Product) for part in ("query", "key", "value")]
    mix = Product(*(np.concatenate(each, axis=-1) for each in zip(*mixed, strict=True)))
    norms = norm("norm"), norm("last")
    return Block(mix, product("out"), norms[0], product("wide"), product("narrow"), norms[1])
