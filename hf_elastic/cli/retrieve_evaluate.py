"""`hf-elastic retrieve evaluate`: quality of sizes on judged queries."""

from __future__ import annotations

from dataclasses import dataclass

from ..retrieval.evaluate_config import EvaluateRetrievalConfig
from .common import parse
from .data import check_device


@dataclass(kw_only=True)
class RetrieveEvaluateArguments(EvaluateRetrievalConfig):
    """What to evaluate, and on what."""


def main(argv: list[str]) -> int:
    """Run the command."""
    from rich.console import Console

    (args,) = parse([RetrieveEvaluateArguments], argv, "retrieve evaluate")
    if args.device is not None:
        check_device(args.device)
    from ..retrieval.evaluate import run
    from ..retrieval.loading import load_denser, load_ranker

    Console().print(run(args, load_denser, load_ranker).table())
    return 0
