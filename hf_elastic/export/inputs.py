"""What an export is compared on: a padded batch of texts, of labelled rows, or of random tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.lengths import longest_sequence
from .scoring import HeldOut

# Compared where the caller has no text of its own: of several lengths, so that padding is exercised.
TEXTS = (
    "Return a new iterator over the keys of the mapping.",
    "The quick brown fox jumps over the lazy dog, and then it rests for a while in the shade of an old tree.",
    "Yes.",
    "A checkpoint that was cut to size must still compute what it did inside the larger one.",
)
NAMES = ("input_ids", "attention_mask", "token_type_ids")
LONGEST = 128  # tokens of a text that is tokenized here


@dataclass(frozen=True)
class Inputs:
    """What an export is compared on.

    Attributes:
        tensors: a padded batch, as the model takes it: `int64[batch, sequence]` each.
        record: the same for `parity.json`: texts, or shapes.
    """

    tensors: dict[str, torch.Tensor]
    record: list | dict


def make_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str] | None = None) -> Inputs:
    """A padded batch of the texts (default: `TEXTS`), or of random tokens where there is no tokenizer."""
    if tokenizer is None or tokenizer.pad_token is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (len(TEXTS), 16), generator=generator)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Inputs(tensors, {name: list(tensor.shape) for name, tensor in tensors.items()})
    longest = min(LONGEST, longest_sequence(model.base))
    # On the right, where padding moves no token: a causal model called without positions counts it in.
    settings = {"padding": True, "padding_side": "right", "truncation": True, "max_length": longest}
    batch = tokenizer(list(texts or TEXTS), return_tensors="pt", **settings)
    taken = inspect.signature(model.base.forward).parameters
    accepted = {name: tensor for name, tensor in batch.items() if name in NAMES and name in taken}
    return Inputs(accepted, list(texts or TEXTS))


def held_out_inputs(held_out: HeldOut) -> Inputs:
    """Rows like those that the model is for: on a few of any other kind, int8 can decide a near tie the other way."""
    tensors = {name: tensor for name, tensor in held_out.batches[0].items() if name != "labels"}
    return Inputs(tensors, {"rows_of": held_out.name, **{name: list(tensor.shape) for name, tensor in tensors.items()}})
