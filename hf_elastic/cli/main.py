"""`hf-elastic COMMAND [recipe.yaml] [--key value ...]`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

COMMANDS = {
    "quickstart": "convert, train, search and export a real model, offline, in minutes",
    "convert": "make a checkpoint elastic",
    "train": "train its sizes together",
    "measure": "measure latency and peak memory of sizes on this machine",
    "search": "find the best sizes on this machine",
    "evaluate": "score sizes on zero-shot tasks, next to parameters and latency",
    "export": "write a size as a standard checkpoint, ONNX or another format",
    "push": "upload an elastic checkpoint and sizes of it to the Hugging Face Hub",
}
# What bad input raises; anything else is a bug and keeps its traceback.
BAD_INPUT = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError, FloatingPointError, OSError)


def _usage() -> str:
    lines = [f"  {name:<11} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: hf-elastic COMMAND [recipe.yaml] [--key value ...]", "", *lines, "", "COMMAND --help explains."])


@contextmanager
def _interruptions_count() -> Iterator[None]:
    """Send Ctrl-C again where Python would drop it.

    A `KeyboardInterrupt` that is raised inside a finalizer (`__del__`, a weak reference's callback) is printed and forgotten, and
    the command would go on as if nobody had pressed a key.
    """

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return previous(unraisable)
        # Not from here: the hook runs inside the finalizer, where it would be dropped once more.
        timer = threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.daemon = True
        timer.start()

    previous, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0 for success, 2 for bad input, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    from .common import fail

    command, *rest = argv
    if command not in COMMANDS:
        return fail(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with _interruptions_count():
            return import_module(f".{command}", __package__).main(rest) or 0
    except BAD_INPUT as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print(f"\nhf-elastic: interrupted; nothing half-written is left. {RESUME.get(command, '')}".rstrip(), file=sys.stderr)
        return 130


RESUME = {
    "train": "The same command with --resume_from_checkpoint true goes on from the last checkpoint.",
    "search": "The same command goes on where it was.",
    "evaluate": "The same command goes on where it was.",
    "push": "The same command goes on where it was.",
}

if __name__ == "__main__":
    sys.exit(main())
