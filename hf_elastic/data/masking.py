"""Masked language modelling whose masks a resumed training draws again."""

from __future__ import annotations

import zlib

import torch
from transformers import DataCollatorForLanguageModeling, TrainerCallback


class ResumableMasking(DataCollatorForLanguageModeling, TrainerCallback):
    """Draws the masks of a batch from its tokens, the epoch and the seed, not from what was drawn before.

    A loader makes a batch while the one before it is trained on, so that a checkpoint saved then has random numbers that the
    next masks were drawn without. As a callback of a Trainer it is told the epoch, so that masks differ from one to the next.
    """

    epoch = 0

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Remember which epoch begins, or goes on after a checkpoint."""
        self.epoch = int(state.epoch or 0)

    def torch_call(self, examples: list) -> dict[str, torch.Tensor]:
        """As transformers'."""
        tokens = b"".join(torch.as_tensor(row["input_ids"]).numpy().tobytes() for row in examples)
        seed = torch.initial_seed() + zlib.crc32(tokens, self.epoch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            return super().torch_call(examples)
