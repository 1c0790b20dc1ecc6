"""What blocks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import Cache, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """Attention written out, as in transformers' models.

    Returns:
        `[batch, query, head, size]`, and the weights `[batch, head, query, key]`.
    """
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask[:, :, :, : key.shape[2]]
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Attention over a width that its heads partition: how many there are changes no parameter.

    Args:
        config: of the model.
        width: all heads together.
        output: what it writes.
        num_attention_heads: must divide `width`.
        layer_idx: place in the key-value cache.
    """

    def __init__(self, config: PretrainedConfig, width: int, output: int, num_attention_heads: int, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_attention_heads = num_attention_heads
        self.is_causal = config.is_decoder
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, width)
        self.key = nn.Linear(config.hidden_size, width)
        self.value = nn.Linear(config.hidden_size, width)
        self.output = nn.Linear(width, output)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[batch, length, hidden]` to `[batch, length, output]`, and the attention weights where the kernel has them."""
        query, key, value = (self._split(part(hidden_states)) for part in (self.query, self.key, self.value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable = eager_attention
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=query.shape[-1] ** -0.5,
            **kwargs,
        )
        return self.output(attended.flatten(2)), weights

    def _split(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[batch, length, width]` to `[batch, head, length, size]`."""
        return tensor.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, intermediate_size: int, activation: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.up = nn.Linear(width, intermediate_size)
        self.down = nn.Linear(intermediate_size, width)
        self.activation = activation

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., width]` to `[..., width]`."""
        return self.down(self.activation(self.up(hidden_states)))


class NoNorm(nn.Module):
    """A scale and a shift of each channel in place of a normalisation (MobileBERT, arXiv 2004.02984, section 3.3)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., width]` to `[..., width]`."""
        return hidden_states * self.weight + self.bias
