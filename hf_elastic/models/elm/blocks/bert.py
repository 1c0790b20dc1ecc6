"""The block of BERT: attention and feed-forward network at full width, each followed by its layer normalisation."""

from __future__ import annotations

import torch
from torch import nn

from . import width_of
from .parts import Attention, FeedForward


class Block(nn.Module):
    """One block.

    Args:
        config: an `ElmConfig`.
        size: a `LayerSize`.
        layer_idx: place in the key-value cache.
    """

    def __init__(self, config, size, layer_idx: int):
        super().__init__()
        hidden = config.hidden_size
        self.attention = Attention(config, width_of("bert", hidden), hidden, size.num_attention_heads, layer_idx)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(hidden, size.intermediate_size, nn.GELU(approximate="tanh"))
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[batch, length, hidden]` to the same, and the attention weights; further arguments are those of `Attention`."""
        attended, weights = self.attention(hidden_states, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.output_norm(hidden_states + self.dropout(self.feed_forward(hidden_states))), weights
