"""Which sizes are scored, on what, and how they are timed: the options of `evaluate` and of `hf-elastic evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..utils.options import check_integers, read_name_or_mapping


@dataclass(kw_only=True)
class EvaluationConfig:
    """Which sizes to evaluate, and on what.

    Raises:
        UserError: a negative number of shots, or a count below 1.
    """

    data_dir: str = field(metadata={"help": "Folder with the tasks' data files, or with a folder 'zeroshot' of them."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Tasks, separated by commas or spaces; default: all 14."})
    subnets: list[str] | None = field(
        default=None,
        metadata={"help": "Named sizes, or subnets as JSON; default: the largest, the smallest and every named one."},
    )
    num_fewshot: int = field(default=0, metadata={"help": "Solved items before each one, from the same file (count)."})
    limit: int | None = field(default=None, metadata={"help": "Only so many items of each task, the first ones (count)."})
    batch_size: int = field(default=8, metadata={"help": "Requests per forward (count)."})
    device: str = field(default="cpu", metadata={"help": "Device for torch, such as cpu or cuda."})
    latency: bool = field(default=True, metadata={"help": "Measure latency, all sizes side by side."})
    sequence_length: int = field(default=128, metadata={"help": "Length of the one sequence that is timed (tokens)."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads while timing; default: the runtime's."})

    def __post_init__(self):
        if self.tasks is not None:
            self.tasks = [name for given in self.tasks for name in given.split(",") if name]
        if self.subnets is not None:
            self.subnets = [read_name_or_mapping("subnets", given) for given in self.subnets]
        check_integers(0, num_fewshot=self.num_fewshot)
        check_integers(1, batch_size=self.batch_size, sequence_length=self.sequence_length)
        check_integers(1, or_none=True, limit=self.limit, threads=self.threads)
