"""The block of MobileBERT (arXiv 2004.02984): attention and feed-forward network within a bottleneck, and no normalisation."""

from __future__ import annotations

import torch
from torch import nn

from . import width_of
from .parts import Attention, FeedForward, NoNorm


class Block(nn.Module):
    """One block. Queries, keys and values are read at full width.

    Args:
        config: an `ElmConfig`.
        size: a `LayerSize`.
        layer_idx: place in the key-value cache.
    """

    def __init__(self, config, size, layer_idx: int):
        super().__init__()
        hidden, inner = config.hidden_size, width_of("mobilebert", config.hidden_size)
        self.squeeze = nn.Linear(hidden, inner)
        self.attention = Attention(config, inner, inner, size.num_attention_heads, layer_idx)
        self.attention_norm = NoNorm(inner)
        self.feed_forward = FeedForward(inner, size.intermediate_size, nn.ReLU())
        self.feed_forward_norm = NoNorm(inner)
        self.expand = nn.Linear(inner, hidden)
        self.output_norm = NoNorm(hidden)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[batch, length, hidden]` to the same, and the attention weights; further arguments are those of `Attention`."""
        attended, weights = self.attention(hidden_states, **kwargs)
        inner = self.attention_norm(self.squeeze(hidden_states) + attended)
        inner = self.feed_forward_norm(inner + self.feed_forward(inner))
        return self.output_norm(hidden_states + self.dropout(self.expand(inner))), weights
