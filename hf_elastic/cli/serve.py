"""`hf-elastic serve`: all sizes of a model over HTTP."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

from ..core.errors import MissingPackageError
from ..serving.config import SchedulerConfig
from ..serving.server_config import ServerConfig
from .common import parse
from .data import Source, check_device

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(kw_only=True)
class ServeArguments(Source, ServerConfig):
    """Which model to serve."""

    model: str = field(
        metadata={
            "help": "Folder or Hub id: an elastic classifier or encoder, an ElasticDenser or ElasticRanker, or any model of "
            "sentence-transformers or classifier, which has one size."
        }
    )
    device: str = field(default="cpu", metadata={"help": "Device for torch, such as cpu or cuda."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([ServeArguments, SchedulerConfig], argv, "serve"))
    return 0


def run(args: ServeArguments, scheduling: SchedulerConfig) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from ..retrieval import check_installed

    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingPackageError(f"serve needs {', '.join(missing)}: run pip install 'hf-elastic[serve]'")
    check_installed()
    from ..serving.run import serve

    serve(args.checkpoint, args, scheduling, device=check_device(args.device))
