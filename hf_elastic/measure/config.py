"""What `measure_profile`, `hf-elastic measure` and its recipes are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_integers


@dataclass
class MeasureConfig:
    """Which sizes to measure, and how.

    Raises:
        ValueError: a value that is not allowed.
        ImportError: the runtime is not installed.
    """

    subnets: list[str] | None = field(
        default=None, metadata={"help": "Named sizes; default: the largest, the smallest and every named one."}
    )
    num_subnets: int = field(
        default=0, metadata={"help": "Sizes in all, the others drawn over the whole space (count); 32 are good to predict from."}
    )
    runtime: str = field(default="torch", metadata={"help": "torch, torch.compile, onnxruntime or openvino."})
    phase: str = field(
        default="forward",
        metadata={"help": "forward; for causal models also prefill, or token: one token after sequence_length others."},
    )
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: the runtime's."})
    batch_size: int = field(default=1, metadata={"help": "Sequences per call (count)."})
    sequence_length: int = field(default=128, metadata={"help": "Length of a sequence (tokens)."})
    memory: bool = field(default=True, metadata={"help": "Measure peak memory as well, each size in a fresh process (Linux)."})
    memory_workers: int = field(
        default=1, metadata={"help": "Sizes whose peak memory is measured at a time; all have to fit into memory (count)."}
    )
    repeats: int = field(default=30, metadata={"help": "Most samples of each size (count)."})
    warmup: int = field(default=3, metadata={"help": "Calls of each size before the first sample (count)."})
    min_rounds: int = field(default=6, metadata={"help": "Fewest samples of each size before stopping early (count)."})
    relative_interval: float = field(
        default=0.03, metadata={"help": "Stop when half of every 95 percent interval is below this share of its median."}
    )
    budget_seconds: float | None = field(
        default=None, metadata={"help": "Stop timing after this long (seconds); default: never."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the drawn sizes, the input and the order."})

    def __post_init__(self):
        from .latency import check_sampling

        if isinstance(self.subnets, str):
            raise UserError(f"subnets must be a list of names, got {self.subnets!r}")
        check_integers(0, num_subnets=self.num_subnets, seed=self.seed)
        check_integers(1, memory_workers=self.memory_workers)
        check_sampling(**self.sampling)
        self.workload  # noqa: B018 - it checks its own values

    @property
    def workload(self):
        """What is timed, a `Workload`."""
        from .workload import Workload  # it needs the models, and --help does not

        return Workload(self.batch_size, self.sequence_length, self.threads, self.seed, self.runtime, self.phase)

    @property
    def sampling(self) -> dict[str, object]:
        """The options of `measure_latency`."""
        return {
            "repeats": self.repeats,
            "warmup": self.warmup,
            "min_rounds": self.min_rounds,
            "relative_interval": self.relative_interval,
            "budget_seconds": self.budget_seconds,
        }
