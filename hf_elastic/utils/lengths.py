"""How long the input of a model may be."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..core.errors import UserError

UNLIMITED = 2**31 - 1
TABLES = ("position_embeddings", "embed_positions", "wpe")  # names of a table that has a row for every position


def longest_sequence(model: PreTrainedModel) -> int:
    """The most tokens that a stock model takes: its positions, less those that RoBERTa's kind of table keeps for padding.

    `UNLIMITED` where positions have no table and the config names no limit (Transformer-XL).
    """
    reserved = [table.padding_idx + 1 for table in _tables(model) if table.padding_idx is not None]
    return (getattr(model.config, "max_position_embeddings", None) or UNLIMITED) - max(reserved, default=0)


def check_length(name: str, tokens: int, model: PreTrainedModel) -> None:
    """Raise UserError, naming the most tokens, if a stock model has no positions for so many.

    Models without a table of positions compute with more than they were trained on, and are let.
    """
    longest = longest_sequence(model)
    if tokens > longest and _tables(model):
        raise UserError(f"{name}: {tokens} tokens, but the model has positions for {longest} at most")


def _tables(model: PreTrainedModel) -> list[nn.Embedding]:
    return [
        module for name, module in model.named_modules() if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TABLES
    ]
