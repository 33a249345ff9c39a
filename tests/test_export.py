"""The exported graph is the network: in torch, with the same rounding, it says the same."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from mmguard.bundles import load_bundle
from mmguard.detect.windows import Window
from mmguard.train.export import export, product, quantise_words, weights_of
from mmguard.train.layout import lay_out, unpack
from mmguard.train.network import HEADS, Network, collate

WORDS = 200


def make_network() -> Network:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    network = Network(BertModel(config, add_pooling_layer=False)).eval()
    for weight in network.parameters():
        # As they come, biases are nought and layers do next to nothing.
        nn.init.normal_(weight, std=0.3)
    return network


def rounded(network: Network) -> Network:
    """The network with eight-bit weights, whose products round what they are given."""
    made = deepcopy(network)
    table = made.body.embeddings.word_embeddings.weight
    words = quantise_words(table.detach().numpy())
    table.data = torch.tensor((words.rows.astype("f4") - words.zero) * words.scale)
    for part in made.modules():
        if isinstance(part, nn.Linear):
            found = product(part.weight, part.bias)
            part.weight.data = torch.tensor((found.weight * found.scale).T)
            part.register_forward_pre_hook(lambda part, given: round_off(*given))
    return made


def round_off(x: Tensor) -> Tensor:
    """ONNX' DynamicQuantizeLinear and back."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


@pytest.fixture(scope="module")
def session(network: Network) -> Any:
    return ort.InferenceSession(export(network), providers=["CPUExecutionProvider"])


def window(length: int, seed: int) -> Window:
    draw = Random(seed)
    ids = tuple(draw.randrange(WORDS) for _ in range(length))
    return Window(ids, tuple(int(i > length // 2) for i in range(length)))


def run(session: Any, one: Window) -> Any:
    fed = {"input_ids": np.array([one.ids]), "token_type_ids": np.array([one.types])}
    return session.run(None, fed)[0][0]


def run_torch(network: Network, one: Window) -> Any:
    with torch.no_grad():
        return network(*collate([one], "cpu"))[0].numpy()


def test_the_export_mostly_rounds_as_the_network_does(network: Network, session: Any) -> None:
    exact = rounded(network)
    windows = [window(length, length) for length in range(2, 60)]
    apart = [np.abs(run(session, one) - run_torch(exact, one)).max() for one in windows]
    assert np.quantile(apart, 0.8) < 1e-4


@given(st.integers(2, 60), st.integers(0, 99))
@settings(deadline=None)
def test_the_export_is_the_network(network: Network, session: Any, length: int, seed: int) -> None:
    one = window(length, seed)
    found, wanted = run(session, one), run_torch(rounded(network), one)
    assert found.shape == (len(HEADS),)
    # An input may fall to the other side of a step, which moves all that follows.
    assert np.abs(found - wanted).max() < 0.1
    assert np.abs(found - run_torch(network, one)).max() < 0.2


def test_a_model_is_its_weights(network: Network) -> None:
    model = export(network)
    assert lay_out(weights_of(network)) == model == lay_out(unpack(model))


def test_the_shipped_model_is_laid_out_by_this_code() -> None:
    model = load_bundle("response-harm").read("model.onnx")
    assert lay_out(unpack(model)) == model


@given(st.integers(0, 99), st.floats(-6, 3))
@settings(deadline=None)
def test_weights_are_rounded_to_the_nearest_step(seed: int, size: float) -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) * 10**size
    weight[3] = 0
    found = product(weight, torch.zeros(7))
    assert found.weight.shape == (5, 7)
    off = np.abs(found.weight * found.scale - weight.numpy().T)
    assert (off <= found.scale * 0.5001).all()
    assert (np.abs(found.weight).max(0) == [127, 127, 127, 0, 127, 127, 127]).all()
