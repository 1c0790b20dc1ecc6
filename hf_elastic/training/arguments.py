"""`ElasticTrainingArguments`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

import torch
from transformers import TrainingArguments

from ..core.errors import UserError
from ..utils.options import check_integers, read_mapping, read_name_or_mapping
from .losses import DISTILLATION
from .precision import read_bf16

SAMPLING = ("sandwich", "all", "single_path", "progressive")
SIZE_WEIGHTS = ("uniform", "flops")
GROWTH_NEED = ("components", "share")
GRADIENT_SURGERY = ("none", "pcgrad")


@dataclass
class ElasticTrainingArguments(TrainingArguments):
    """`TrainingArguments`, and how many sizes are trained and what they learn from.

    Options that are mappings also take JSON, as on the command line.

    Raises:
        UserError: an unknown `sampling`, distillation term or gradient surgery, a negative weight or count, a temperature that
            is not above 0, all weights zero; or whatever `TrainingArguments` refuses.
    """

    sampling: str = field(
        default="sandwich",
        metadata={
            "help": "Sizes per step: sandwich (largest, smallest, some random), all (every named size), single_path (one "
            "random), or progressive (a sandwich in a space that opens axis by axis)."
        },
    )
    num_random_subnets: int = field(default=2, metadata={"help": "Random sizes per sandwich or progressive step (count)."})
    split_random_rows: int = field(
        default=1,
        metadata={
            "help": "Parts that the rows of a micro-batch are dealt out into for the random sizes of its step (count): each of "
            "them trains on one part, so that many sizes per step are about the work of few; 1 gives every size all rows."
        },
    )
    subnet_dropout: bool = field(
        default=True,
        metadata={
            "help": "Whether sizes below the largest are trained with dropout too. Without it they train faster: no masks are "
            "drawn, and attention can take a fused kernel."
        },
    )
    train_subnets: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the nested sizes to train beside the largest; default: the whole space."},
    )
    size_weights: str = field(
        default="uniform",
        metadata={
            "help": "Weight of each size's loss: uniform, flops, or a mapping of largest, smallest and random (with "
            "train_subnets or all: of largest and names) to a weight, 1 where left out. They are normalised to a sum of 1."
        },
    )
    progressive_schedule: str | None = field(
        default=None,
        metadata={
            "help": "For progressive sampling: mapping of axis to the share of the training after which it opens, from 0 to "
            "below 1; default: evenly spaced, depth last."
        },
    )
    task_weight: float = field(
        default=0.5, metadata={"help": "Weight of the task loss of every size but the largest, whose weight is 1."}
    )
    distillation: str = field(
        default='{"logits": 0.5}',
        metadata={"help": f"Mapping of distillation term to weight; the terms: {', '.join(DISTILLATION)}. {{}} turns it off."},
    )
    temperature: float = field(default=2.0, metadata={"help": "Temperature of the distilled logits, above 0."})
    relation_heads: int = field(
        default=32,
        metadata={"help": "Heads that queries, keys and values are split into for the relation term (count)."},
    )
    growth_cap: int | None = field(
        default=None,
        metadata={
            "help": "Feed-forward widths start narrow and grow while training, until random sizes have so many parameters on "
            "average (count); the space then has no intermediate_size. Default: none grow."
        },
    )
    growth_width: int | None = field(
        default=None,
        metadata={"help": "With growth_cap: width at the start, and of each step (channels); default: a quarter of hidden_size."},
    )
    growth_steps: int | None = field(
        default=None, metadata={"help": "With growth_cap: widths grow every so many steps (steps); default: after every epoch."}
    )
    growth_pairs: int | None = field(
        default=None,
        metadata={
            "help": "With growth_cap: feed-forward networks, one for each layer and block, that grow at once (count); default: a "
            "quarter of them."
        },
    )
    growth_measure_steps: int = field(
        default=50, metadata={"help": "With growth_cap: look at pre-activations every so many steps (steps)."}
    )
    growth_variance: float = field(
        default=0.99,
        metadata={"help": "With growth_cap: share of their variance that the principal components hold, between 0 and 1."},
    )
    growth_need: str = field(
        default="components",
        metadata={
            "help": "With growth_cap: which networks grow first: those of the most components, or of the largest share of "
            "components in their width (components, share)."
        },
    )
    gradient_surgery: str = field(
        default="none",
        metadata={"help": "none, or pcgrad (an ablation): project away what a size's gradient has against another's."},
    )
    gradient_cosine_steps: int = field(
        default=0,
        metadata={"help": "Log the cosine between the gradients of the sizes every so many steps; 0 is never (steps)."},
    )
    bf16: str = field(
        default=False,
        metadata={
            "nargs": "?",
            "const": "true",
            "help": "Whether to train in bfloat16: true, false, or auto (on a GPU that has it, on a CPU that is faster in it).",
        },
    )
    eval_subnets: list[str] | None = field(
        default=None,
        metadata={"help": "Names of sizes to evaluate beside the full one; default: those trained by name, smallest and named."},
    )

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True
            self.dataloader_pin_memory = False  # without one it is a warning at every pass over the data
        self.bf16 = read_bf16(self.bf16, self.use_cpu, self.fp16)
        with as_user_error(ValueError):
            super().__post_init__()
        self.check_sizes()

    def check_sizes(self) -> None:
        """Check what `TrainingArguments` does not have, and read the mappings among them.

        Raises:
            UserError: see the class.
        """
        _check_known("sampling", self.sampling, SAMPLING)
        check_integers(1, split_random_rows=self.split_random_rows, relation_heads=self.relation_heads)
        check_integers(0, num_random_subnets=self.num_random_subnets, gradient_cosine_steps=self.gradient_cosine_steps)
        given = {"growth_cap": self.growth_cap, "growth_width": self.growth_width}
        given |= {"growth_steps": self.growth_steps, "growth_pairs": self.growth_pairs}
        check_integers(1, or_none=True, **given)
        check_integers(1, growth_measure_steps=self.growth_measure_steps)
        if not 0 < self.growth_variance < 1:
            raise UserError(f"growth_variance: {self.growth_variance} is not between 0 and 1")
        _check_known("growth_need", self.growth_need, GROWTH_NEED)
        if self.growth_cap is None and (unused := [name for name, value in given.items() if value is not None]):
            raise UserError(f"{unused[0]}: only with growth_cap")
        if self.split_random_rows > 1 and self.sampling not in ("sandwich", "progressive"):
            raise UserError(f"split_random_rows: sampling {self.sampling!r} has no random sizes beside others; use sandwich")
        if self.gradient_checkpointing and not self.subnet_dropout:
            raise UserError(
                "subnet_dropout: false does not go with gradient_checkpointing, which transformers does in training mode only"
            )
        _check_known("gradient_surgery", self.gradient_surgery, GRADIENT_SURGERY)
        self.size_weights = read_name_or_mapping("size_weights", self.size_weights)
        if isinstance(self.size_weights, Mapping):
            _check_weights("size_weights", self.size_weights)
        else:
            _check_known("size_weights", self.size_weights, SIZE_WEIGHTS)
        self.progressive_schedule = read_mapping("progressive_schedule", self.progressive_schedule)
        self.distillation = read_mapping("distillation", self.distillation) or {}
        for name in self.distillation:
            _check_known("distillation", name, DISTILLATION)
        _check_weights("distillation", self.distillation)
        if not 0 <= self.task_weight < inf:
            raise UserError(f"task_weight: {self.task_weight} must be a finite number, 0 or more")
        for name in ("train_subnets", "eval_subnets"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"{name}: {getattr(self, name)!r} is one name; it must be a list of names")
        if not self.task_weight + sum(self.distillation.values()):
            raise UserError("task_weight and every weight of distillation are 0: smaller sizes would learn nothing")
        if not 0 < self.temperature < inf:
            raise UserError(f"temperature: {self.temperature} must be a finite number above 0")


@contextmanager
def as_user_error(*kinds: type[Exception]) -> Iterator[None]:
    """Turn what transformers raises where it refuses an argument, one of `kinds`, into a UserError of the same words."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(*error.args[:1]) from error


def _check_known(option: str, value: str, known) -> None:
    if value not in known:
        raise UserError(f"{option}: {value!r} is unknown; known: {', '.join(known)}")


def _check_weights(option: str, weights: Mapping) -> None:
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < inf:
            raise UserError(f"{option}: {name}: {weight!r} is not a weight, a finite number of 0 or more")
