"""What the Transformer-XL models return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class TransformerXLModelOutput(ModelOutput):
    """What `TransformerXLModel` returns.

    Args:
        last_hidden_state: `[batch, length, d_model]`.
        mems: per layer the inputs `[memory, batch, d_model]` of the last `mem_len` positions, detached; None without memory.
        hidden_states: inputs of all layers and `last_hidden_state`, each `[batch, length, d_model]`, on request.
        attentions: per layer `[batch, head, length, memory + length]`, on request.
    """

    last_hidden_state: torch.Tensor | None = None
    mems: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TransformerXLCausalLMOutput(ModelOutput):
    """What `TransformerXLForCausalLM` returns; see `TransformerXLModelOutput` for what is not listed.

    Args:
        loss: mean negative log-likelihood in nats, where there are labels.
        logits: log-probabilities `[batch, length, vocab_size]` in float32 (their softmax is themselves exponentiated), where
            there are no labels or `return_logits` is set.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mems: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
