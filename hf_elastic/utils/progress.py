"""The progress bar of a search."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """One bar on stderr that counts what is done and estimates the time left; shows nothing if stderr is no terminal.

    Args:
        is_shown: False shows nothing anywhere.
    """

    def __init__(self, is_shown: bool):
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not (is_shown and console.is_terminal))
        self._task = None

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, what: str, done: int, total: int | None) -> None:
        """Begin a new bar; the one before stays as it is."""
        self._task = self._progress.add_task(what, total=total, completed=done)

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def update(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self._progress.update(self._task, completed=done, total=total)
