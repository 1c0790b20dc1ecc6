"""The embedding of trigrams, and the layer that runs one of its blocks."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from ...core.errors import UserError
from .blocks import block_class
from .configuration_elm import ElmConfig, LayerSize


class ElmEmbeddings(nn.Module):
    """Word embeddings of neighbouring tokens side by side, projected to the hidden size (MobileBERT, arXiv 2004.02984, section
    3.1), plus positions and token types.

    A token has the one before it and the one after it; in a causal model only the one before, because the one after is what is
    to be predicted. Beyond the ends of a text and in padding there are zeros.
    """

    def __init__(self, config: ElmConfig):
        super().__init__()
        self.is_causal = config.is_decoder
        self.cache_idx = config.num_hidden_layers
        neighbours = 2 if config.is_decoder else 3
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.projection = nn.Linear(neighbours * config.embedding_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        words: torch.Tensor,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Hidden states `[batch, length, hidden]`.

        Args:
            words: embeddings of the tokens `[batch, length, embedding]`.
            position_ids: `[1 or batch, length]`.
            token_type_ids: `[batch, length]`; None is type 0.
            attention_mask: `[batch, past + length]`, 0 for padding.
            past_key_values: also keeps the words, for the first new token has one before it.
        """
        if attention_mask is not None:
            words = words * attention_mask[:, -words.shape[1] :, None].to(words.dtype)
        before = nn.functional.pad(words, (0, 0, 1, 0))[:, :-1]
        if past_key_values is not None:
            kept = self._remember(words, past_key_values)
            before = nn.functional.pad(kept, (0, 0, 1, 0))[:, -words.shape[1] - 1 : -1]
        trigrams = [before, words]
        if not self.is_causal:
            trigrams.append(nn.functional.pad(words, (0, 0, 0, 1))[:, 1:])
        hidden = self.projection(torch.cat(trigrams, dim=-1)) + self.position_embeddings(position_ids)
        hidden = hidden + self.token_type_embeddings(torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids)
        return self.dropout(self.norm(hidden))

    def _remember(self, words: torch.Tensor, cache: Cache) -> torch.Tensor:
        """All words so far `[batch, past + length, embedding]`: the cache has them as one more layer, half as keys and half as
        values, so that whatever reorders or crops a cache does so with them."""
        if len(cache.layers) == self.cache_idx and cache.layer_class_to_replicate is None:
            if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
                raise UserError(f"an ELM needs a cache of dynamic layers, got a {type(cache).__name__}")
            cache.layers.append(DynamicLayer())
        first, second = words[:, None].chunk(2, dim=-1)
        return torch.cat(cache.update(first, second, self.cache_idx), dim=-1)[:, 0]


class ElmLayer(GradientCheckpointingLayer):
    """One layer: the first of the blocks that it holds runs. Only in a supernet there are others."""

    def __init__(self, config: ElmConfig, size: LayerSize, layer_idx: int):
        super().__init__()
        self.blocks = nn.ModuleDict({name: block_class(name)(config, size, layer_idx) for name in size.blocks})

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[batch, length, hidden]` to the same, and the attention weights where the kernel has them."""
        return next(iter(self.blocks.values()))(hidden_states, **kwargs)
