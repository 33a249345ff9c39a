"""The encoder with its heads, and what it is taught by.

One pass gives every head: p(answer is harmful), p(request is harmful), p(answer is a
refusal) and one logit a hazard. Knows torch and transformers' BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmguard.detect.hazards import HAZARDS
from mmguard.detect.windows import Window
from mmguard.train.mix import Example

HEADS = ("answer", "request", "refusal", *HAZARDS.values())
# What each head adds to the loss, against the answer's head.
SHARE = {"answer": 1.0, "request": 0.4, "refusal": 0.2}
HAZARD_SHARE, CONTRAST_SHARE = 0.3, 0.3


class Network(nn.Module):
    """A BERT body; the heads read its first token beside the mean of all."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.Linear(2 * body.config.hidden_size, len(HEADS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits of `HEADS`, [batch, heads], for ids of [batch, length]."""
        hidden = self.body(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        logits: Tensor = self.heads(torch.cat((hidden[:, 0], mean), dim=-1))
        return logits


def load_network(base: Path | str) -> Network:
    """The network over a HuggingFace BERT checkpoint, heads untrained, words frozen."""
    from transformers import AutoModel

    body = AutoModel.from_pretrained(
        base,
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        add_pooling_layer=False,
    )
    body.embeddings.word_embeddings.weight.requires_grad_(False)
    return Network(body)


def keep_layers(network: Network, count: int) -> Network:
    """The network with `count` of its layers, spread evenly from the first to the last."""
    layers = network.body.encoder.layer
    kept = torch.linspace(0, len(layers) - 1, min(count, len(layers))).round().int().tolist()
    network.body.encoder.layer = nn.ModuleList(layers[i] for i in kept)
    network.body.config.num_hidden_layers = len(kept)
    return network


def collate(windows: Sequence[Window], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and types of windows, padded to the longest: each [batch, length]."""
    shape = (len(windows), max(len(window.ids) for window in windows))
    ids, mask, types = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for place, window in enumerate(windows):
        size = len(window.ids)
        ids[place, :size] = torch.tensor(window.ids)
        types[place, :size] = torch.tensor(window.types)
        mask[place, :size] = 1
    return ids.to(device), mask.to(device), types.to(device)


def targets(examples: Sequence[Example]) -> Tensor:
    """What each head should say, [batch, heads]; NaN where nobody knows."""
    return torch.tensor([target(example) for example in examples])


def target(example: Example) -> list[float]:
    known = [example.answer, example.request, example.refusal]
    hazards = example.hazards
    marks = [None if hazards is None else float(name in hazards) for name in HEADS[3:]]
    return [float("nan") if value is None else value for value in (*known, *marks)]


def loss_of(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy of every head that has a target, weighted by `SHARE`."""
    known = ~wanted.isnan()
    each = F.binary_cross_entropy_with_logits(logits, wanted.nan_to_num(), reduction="none")
    each = each * known
    shares = torch.tensor(
        [SHARE.get(name, HAZARD_SHARE / len(HAZARDS)) for name in HEADS], device=logits.device
    )
    # By the rows of the batch, so that a batch with few labels teaches little.
    return (each.sum(0) * shares).sum() / len(logits)


def contrast(better: Tensor, worse: Tensor) -> Tensor:
    """How far the answer head is from calling `worse` the worse one, pair by pair."""
    return CONTRAST_SHARE * F.softplus(better[:, 0] - worse[:, 0]).mean()
