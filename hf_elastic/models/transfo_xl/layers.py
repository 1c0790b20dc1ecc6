"""The blocks of a Transformer-XL. Parameter names and shapes are those of transformers 4's `TransfoXLModel`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_transfo_xl import LayerSize, TransformerXLConfig


class PositionalEmbedding(nn.Module):
    """Sines and cosines of distances (Dai et al. 2019, section 3.3)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model = d_model
        # State dicts of released checkpoints have it. `forward` does not read it: in a bfloat16 model it would be rounded,
        # and distances of some hundred positions would be confused.
        self.register_buffer("inv_freq", self.frequencies())

    def frequencies(self, device: torch.device | None = None) -> torch.Tensor:
        """Radians per position `[d_model / 2]` in float32."""
        return 10000 ** -(torch.arange(0, self.d_model, 2, dtype=torch.float32, device=device) / self.d_model)

    def follow_sizes(self) -> None:
        """Make `inv_freq` again after `d_model` has changed."""
        self.inv_freq = self.frequencies(self.inv_freq.device).to(self.inv_freq.dtype)

    def forward(self, distances: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embeddings `[distances, d_model]` of `[distances]`."""
        angles = distances[:, None] * self.frequencies(distances.device)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


class RelativeAttention(nn.Module):
    """Multi-head attention with relative positions: terms (a) to (d) of Dai et al. 2019, section 3.3."""

    def __init__(self, config: TransformerXLConfig, size: LayerSize):
        super().__init__()
        self.n_head, self.d_head = size.n_head, size.d_head
        self.pre_lnorm = config.pre_lnorm
        width = size.n_head * size.d_head
        self.qkv_net = nn.Linear(config.d_model, 3 * width, bias=False)
        self.r_net = nn.Linear(config.d_model, width, bias=False)
        self.o_net = nn.Linear(width, config.d_model, bias=False)
        self.r_w_bias = nn.Parameter(torch.empty(size.n_head, size.d_head))
        self.r_r_bias = nn.Parameter(torch.empty(size.n_head, size.d_head))
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.dropout)
        self.dropatt = nn.Dropout(config.dropatt)

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        blocked: torch.Tensor,
        memory: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One block of attention.

        Args:
            hidden: `[batch, query, d_model]`.
            positions: embeddings of the distances `key - 1` down to 0, `[key, d_model]`.
            blocked: True where a query must not look, `[1 or batch, 1, query, key]`.
            memory: `[batch, key - query, d_model]` from earlier segments, or None.

        Returns:
            `[batch, query, d_model]`, and the attention weights before dropout `[batch, head, query, key]`.
        """
        context = hidden if memory is None else torch.cat([memory, hidden], dim=1)
        projected = self.qkv_net(self.layer_norm(context) if self.pre_lnorm else context)
        query, key, value = (self._split(part) for part in projected.chunk(3, dim=-1))
        query = query[:, :, -hidden.shape[1] :]
        weights = self._weights(query, key, self._split(self.r_net(positions)), blocked)
        attended = (self.dropatt(weights) @ value).transpose(1, 2).flatten(2)
        output = hidden + self.drop(self.o_net(attended))
        return (output if self.pre_lnorm else self.layer_norm(output)), weights

    def _weights(self, query, key, distance, blocked) -> torch.Tensor:
        """Attention weights `[batch, head, query, key]`."""
        scale = self.d_head**-0.5
        by_content = (query + self.r_w_bias[:, None]) * scale @ key.transpose(-1, -2)
        by_distance = (query + self.r_r_bias[:, None]) * scale @ distance.transpose(-1, -2)
        scores = by_content + relative_shift(by_distance)
        # The lowest finite number, not -inf: a padded query that sees no key at all must not become NaN.
        scores = scores.masked_fill(blocked, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)

    def _split(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[..., length, head x d_head]` to `[..., head, length, d_head]`."""
        return tensor.unflatten(-1, (self.n_head, self.d_head)).transpose(-2, -3)


def relative_shift(by_distance: torch.Tensor) -> torch.Tensor:
    """Turn scores by distance into scores by key (Dai et al. 2019, appendix B), for all queries at once.

    Args:
        by_distance: `[..., query, key]`; column j is the distance `key - 1 - j`, the same for all queries.

    Returns:
        `[..., query, key]`; row i is moved left by `query - 1 - i`, so that column j is the key at position j. What lies after
        the query itself is without meaning and has to be masked.
    """
    queries, keys = by_distance.shape[-2:]
    padded = functional.pad(by_distance, (1, 0))  # one more column shifts each following row by one when read in one go
    return padded.flatten(-2)[..., queries:].unflatten(-1, (queries, keys))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, and the residual connection."""

    def __init__(self, config: TransformerXLConfig, d_inner: int):
        super().__init__()
        self.pre_lnorm = config.pre_lnorm
        self.CoreNet = nn.Sequential(
            nn.Linear(config.d_model, d_inner),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(d_inner, config.d_model),
            nn.Dropout(config.dropout),
        )
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., d_model]` to `[..., d_model]`."""
        if self.pre_lnorm:
            return hidden + self.CoreNet(self.layer_norm(hidden))
        return self.layer_norm(hidden + self.CoreNet(hidden))


class TransformerXLLayer(GradientCheckpointingLayer):
    """Attention and feed-forward network of one layer."""

    def __init__(self, config: TransformerXLConfig, size: LayerSize):
        super().__init__()
        self.dec_attn = RelativeAttention(config, size)
        self.pos_ff = FeedForward(config, size.d_inner)

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        blocked: torch.Tensor,
        memory: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `RelativeAttention.forward`."""
        attended, weights = self.dec_attn(hidden, positions, blocked, memory)
        return self.pos_ff(attended), weights
