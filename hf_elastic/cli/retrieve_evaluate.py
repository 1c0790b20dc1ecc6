"""`hf-elastic retrieve evaluate`: quality of sizes on judged queries."""

from __future__ import annotations

from dataclasses import dataclass

from ..retrieval import check_installed
from ..retrieval.evaluate_config import EvaluateRetrievalConfig
from .common import parse
from .data import check_device


@dataclass(kw_only=True)
class RetrieveEvaluateArguments(EvaluateRetrievalConfig):
    """What to evaluate, and on what."""


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([RetrieveEvaluateArguments], argv, "retrieve evaluate"))
    return 0


def run(args: RetrieveEvaluateArguments):
    """Evaluate, and print a table.

    Returns:
        The `RetrievalResults`.
    """
    check_installed()
    from rich.console import Console

    from ..retrieval import evaluate
    from ..retrieval.loading import load_denser, load_ranker

    args.device = args.device and check_device(args.device)
    results = evaluate.run(args, load_denser, load_ranker)
    Console().print(results.table())
    return results
