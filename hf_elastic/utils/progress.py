"""The progress bar of a search, and of encoding documents."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class RateColumn(ProgressColumn):
    """How many are done in a second.

    Args:
        unit: what is counted.
    """

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate of the last seconds."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self.unit}/s")


class Bar:
    """One bar on stderr that counts what is done and estimates the time left; shows nothing if stderr is no terminal.

    Args:
        is_shown: False shows nothing anywhere.
        unit: what is counted, to show how many are done in a second; default: that is not shown.
    """

    def __init__(self, is_shown: bool, unit: str | None = None):
        console = Console(stderr=True)
        rate = () if unit is None else (RateColumn(unit),)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *rate, TimeRemainingColumn())
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

    def advance(self, count: int = 1) -> None:
        """One more is done, or several."""
        self._progress.advance(self._task, count)

    def update(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self._progress.update(self._task, completed=done, total=total)
