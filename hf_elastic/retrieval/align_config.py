"""How sizes are aligned: the options of `align` and of `hf-elastic retrieve align`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_integers


@dataclass(kw_only=True)
class AlignConfig:
    """How the sizes of a query tower are pulled to the vectors of the document tower. Names are those of `TrainingArguments`.

    Raises:
        UserError: a number out of its range.
    """

    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the texts; max_steps overrides it."})
    max_steps: int = field(default=-1, metadata={"help": "Training steps (count); -1: as num_train_epochs says."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts per step and process (count)."})
    learning_rate: float = field(default=6e-4, metadata={"help": "Peak of the learning rate, which falls to 0 by a cosine."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps in which the learning rate rises (count), or below 1 their share of all."}
    )
    train_embeddings: bool = field(default=False, metadata={"help": "Train the token embeddings too; slower, and seldom better."})
    sampling: str = field(
        default="all",
        metadata={"help": "Sizes per step: all (the named ones), sandwich (largest, smallest, random), single_path."},
    )
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16, where the machine is fast in it."})
    save_steps: int = field(default=200, metadata={"help": "Steps between checkpoints, from which a killed run goes on (count)."})
    logging_steps: int = field(default=20, metadata={"help": "Steps between lines of the log (count)."})
    seed: int = field(default=42, metadata={"help": "Of the order of the texts, and of the draws of sizes."})

    def __post_init__(self):
        counts = ("per_device_train_batch_size", "save_steps", "logging_steps")
        check_integers(1, **{name: getattr(self, name) for name in counts})
        if self.max_steps < 1 and not (self.max_steps == -1 and self.num_train_epochs > 0):
            raise UserError(f"max_steps, num_train_epochs: {self.max_steps} and {self.num_train_epochs} are no steps to train")
        if not self.learning_rate > 0 or not self.warmup_steps >= 0:
            given = f"{self.learning_rate} and {self.warmup_steps}"
            raise UserError(f"learning_rate, warmup_steps: {given}; needed is one above 0, and one that is not below 0")
