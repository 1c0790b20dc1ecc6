"""`ElasticTrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .sampling import SAMPLING


@dataclass
class ElasticTrainingArguments(TrainingArguments):
    """`TrainingArguments`, and how many sizes are trained and what they learn from.

    Raises:
        ValueError: an unknown `sampling`, a negative weight or count, a temperature that is not above 0, or all weights zero.
    """

    sampling: str = field(
        default="sandwich",
        metadata={"help": "Sizes per step: sandwich (largest, smallest, some random), all, or single_path (one random)."},
    )
    num_random_subnets: int = field(default=2, metadata={"help": "Random sizes per sandwich step (count)."})
    task_weight: float = field(
        default=0.5, metadata={"help": "Weight of the task loss of every size but the largest, whose weight is 1."}
    )
    logits_weight: float = field(
        default=0.5, metadata={"help": "Weight of the distillation of logits from the teacher; 0 turns it off."}
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of the distillation of hidden states from the teacher; 0 turns it off."}
    )
    temperature: float = field(default=2.0, metadata={"help": "Temperature of the distilled logits, above 0."})
    eval_subnets: list[str] | None = field(
        default=None,
        metadata={"help": "Names of sizes to evaluate beside the full one; default: smallest and all named ones."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sampling not in SAMPLING:
            raise ValueError(f"sampling: {self.sampling!r} is unknown; known: {', '.join(SAMPLING)}")
        for name in ("task_weight", "logits_weight", "hidden_weight", "num_random_subnets"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; it must be 0 or more")
        if not self.task_weight + self.logits_weight + self.hidden_weight:
            raise ValueError("task_weight, logits_weight and hidden_weight are all 0: smaller sizes would learn nothing")
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} must be above 0")
