"""`hf-elastic evaluate`: zero- and one-shot accuracy of sizes, next to parameters and latency."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..core.loading import check_path
from ..evaluation.config import EvaluationConfig
from .common import parse
from .data import Source, check_device, load_elastic, load_tokenizer

WIDTH = 110  # of the tables in a file (columns)


@dataclass(kw_only=True)
class EvaluateArguments(Source):
    """What to evaluate, and where the results go."""

    model: str = field(
        metadata={
            "help": "An elastic or stock causal checkpoint (folder or Hub id), an adapter, or an export to ONNX or OpenVINO."
        }
    )
    output: str = field(default="evaluation.json", metadata={"help": "File for the results; the same command goes on there."})
    overwrite: bool = field(default=False, metadata={"help": "Begin anew if the output is there."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments and the data, evaluate nothing."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([EvaluateArguments, EvaluationConfig], argv, "evaluate"))
    return 0


def run(args: EvaluateArguments, config: EvaluationConfig):
    """Evaluate, print a table, and write the results.

    Returns:
        The `Results`; None on a dry run.
    """
    from ..evaluation.suite import find_tasks

    files = find_tasks(config.tasks, config.data_dir)
    from rich.console import Console

    from ..evaluation.evaluate import evaluate
    from ..evaluation.table import make_tables, remarks

    path = Path(args.output)
    if path.is_dir():
        raise UserError(f"output: {path} is a folder; give a file such as {path / 'evaluation.json'}")
    check_device(config.device)
    if args.dry_run:
        return None
    candidates, console = load_candidates(args.checkpoint, config), Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    results = evaluate(candidates, load_tokenizer(args.checkpoint), files, path, config, overwrite=args.overwrite)
    for table in make_tables(results, candidates.sizes, files, config):
        console.print(table)
    for line in remarks(results, candidates.sizes, files, config):
        print(line)
    print(f"written: {path}")
    return results


def load_candidates(model: str, config: EvaluationConfig):
    """The sizes that the options name.

    Raises:
        FileNotFoundError: `model` looks like a path and is none.
        UserError: it is no causal language model; or `subnets` for a model that has no sizes.
    """
    from transformers import AutoConfig
    from transformers.utils import ADAPTER_CONFIG_NAME
    from transformers.utils.hub import has_file

    from ..evaluation.candidates import elastic_candidates, find_graph, graph_candidates, stock_candidates

    check_path(model)
    is_graph = find_graph(model) is not None
    if not is_graph and (has_file(model, ADAPTER_CONFIG_NAME) or AutoConfig.from_pretrained(model).model_type == "elastic"):
        return elastic_candidates(load_elastic(model).to(config.device), config.subnets)
    if config.subnets is not None:
        raise UserError(f"subnets: {model} is not elastic, so it has one size; leave the option out")
    return graph_candidates(Path(model), config.threads) if is_graph else stock_candidates(model, config.device)
