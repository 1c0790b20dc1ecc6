"""`hf-elastic evaluate`: zero- and one-shot accuracy of sizes, next to parameters and latency."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils.hub import has_file

from ..core.errors import UserError
from ..core.loading import check_path
from ..utils.options import read_name_or_mapping
from .common import parse
from .data import check_device, load_elastic, load_tokenizer

WIDTH = 110  # of the tables in a file (columns)


@dataclass
class EvaluateArguments:
    """Which sizes to evaluate, and on what."""

    model: str = field(
        metadata={
            "help": "An elastic or stock causal checkpoint (folder or Hub id), an adapter, or an export to ONNX or OpenVINO."
        }
    )
    data_dir: str = field(metadata={"help": "Folder with the tasks' data files, or with a folder 'zeroshot' of them."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Tasks, separated by commas or spaces; default: all 14."})
    subnets: list[str] | None = field(
        default=None,
        metadata={"help": "Named sizes, or subnets as JSON; default: the largest, the smallest and every named one."},
    )
    num_fewshot: int = field(default=0, metadata={"help": "Solved items before each one, from the same file (count)."})
    limit: int | None = field(default=None, metadata={"help": "Only so many items of each task, the first ones (count)."})
    batch_size: int = field(default=8, metadata={"help": "Requests per forward (count)."})
    output: str = field(default="evaluation.json", metadata={"help": "File for the results; the same command goes on there."})
    overwrite: bool = field(default=False, metadata={"help": "Begin anew if the output is there."})
    device: str = field(default="cpu", metadata={"help": "Device for torch, such as cpu or cuda."})
    latency: bool = field(default=True, metadata={"help": "Measure latency, all sizes side by side."})
    sequence_length: int = field(default=128, metadata={"help": "Length of the one sequence that is timed (tokens)."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads while timing; default: the runtime's."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments and the data, evaluate nothing."})

    def __post_init__(self):
        if self.tasks is not None:
            self.tasks = [name for given in self.tasks for name in given.split(",") if name]
        if self.subnets is not None:
            self.subnets = [read_name_or_mapping("subnets", given) for given in self.subnets]


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([EvaluateArguments], argv, "evaluate")
    run(args)
    return 0


def run(args: EvaluateArguments):
    """Evaluate, print a table, and write the results.

    Returns:
        The `Results`; None on a dry run.
    """
    from ..evaluation.suite import find_tasks

    files = find_tasks(args.tasks, args.data_dir)
    from rich.console import Console

    from ..evaluation.evaluate import Settings, evaluate
    from ..evaluation.table import make_tables, remarks
    from ..measure.workload import Workload

    settings = Settings(args.num_fewshot, args.limit, args.batch_size)
    target = Workload(sequence_length=args.sequence_length, threads=args.threads) if args.latency else None
    path = Path(args.output)
    if path.is_dir():
        raise UserError(f"output: {path} is a folder; give a file such as {path / 'evaluation.json'}")
    check_device(args.device)
    if args.dry_run:
        return None
    candidates, console = load_candidates(args), Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if args.overwrite:
        path.unlink(missing_ok=True)
    results = evaluate(candidates, load_tokenizer(args.model), files, path, settings, target)
    for table in make_tables(results, candidates.sizes, files, target):
        console.print(table)
    for line in remarks(results, candidates.sizes, files, target):
        print(line)
    print(f"written: {path}")
    return results


def load_candidates(args: EvaluateArguments):
    """The sizes that the options name.

    Raises:
        FileNotFoundError: `model` looks like a path and is none.
        ValueError: it is no causal language model; or `subnets` for a model that has no sizes.
    """
    from ..evaluation.candidates import elastic_candidates, find_graph, graph_candidates, stock_candidates

    check_path(args.model)
    is_graph = find_graph(args.model) is not None
    if not is_graph and (has_file(args.model, ADAPTER_CONFIG_NAME) or is_elastic(args.model)):
        return elastic_candidates(load_elastic(args.model).to(args.device), args.subnets)
    if args.subnets is not None:
        raise UserError(f"subnets: {args.model} is not elastic, so it has one size; leave the option out")
    if is_graph:
        return graph_candidates(Path(args.model), args.threads)
    return stock_candidates(args.model, args.device)


def is_elastic(name: str) -> bool:
    """Whether a checkpoint is elastic."""
    return AutoConfig.from_pretrained(name).model_type == "elastic"
