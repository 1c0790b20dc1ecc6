"""Results as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..measure.latency import measurement_warnings
from .candidates import Candidate
from .config import EvaluationConfig
from .results import Results, macro_average
from .suite import TaskFile

MOST_TASKS = 5  # side by side in 100 columns


def make_tables(results: Results, sizes: Sequence[Candidate], files: Sequence[TaskFile], config: EvaluationConfig) -> list[Table]:
    """One row per size, and one of what guessing gets: parameters, latency and macro average, then the tasks, a few at a time."""
    blocks = [files[start : start + MOST_TASKS] for start in range(0, len(files), MOST_TASKS)]
    return [_overview(results, sizes, files, config), *(_tasks(results, sizes, block) for block in blocks)]


def _overview(results: Results, sizes: Sequence[Candidate], files: Sequence[TaskFile], config: EvaluationConfig) -> Table:
    latencies = results.latencies([size.name for size in sizes]) if config.latency else None
    timed = [f"latency, 1 x {config.sequence_length} tokens\n(95% interval)"] if latencies else []
    table = Table("size", "parameters", *timed, f"average of {len(files)} tasks\npercent ± standard error")
    for size in sizes:
        latency = [str(latencies[size.name])] if latencies else []
        average = macro_average([results.score(size.name, file.name) for file in files])
        table.add_row(size.name, f"{size.parameters / 1e6:.2f} M", *latency, percent(*average))
    table.add_section()
    table.add_row("chance", "", *([""] if latencies else []), percent(results.average_of_chance([file.name for file in files])))
    return table


def _tasks(results: Results, sizes: Sequence[Candidate], files: Sequence[TaskFile]) -> Table:
    items = [results.score(sizes[0].name, file.name).items for file in files]
    table = Table("size", *(f"{file.name}\n{file.metric}\n{count} items" for file, count in zip(files, items)))
    for size in sizes:
        scores = [results.score(size.name, file.name) for file in files]
        table.add_row(size.name, *(percent(score.value, score.stderr) for score in scores))
    table.add_section()
    table.add_row("chance", *(percent(results.chance(file.name)) for file in files))
    return table


def percent(value: float, stderr: float | None = None) -> str:
    """A share in percent, with its standard error if it has one."""
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def remarks(results: Results, sizes: Sequence[Candidate], files: Sequence[TaskFile], config: EvaluationConfig) -> list[str]:
    """What did not fit the model's input, and whether the machine was busy while timing."""
    found = []
    for file in files:
        truncated = max(results.score(size.name, file.name).truncated for size in sizes)
        if truncated:
            found.append(f"warning: {file.name}: {truncated} requests were longer than the model's input and were cut")
    latencies = results.latencies([size.name for size in sizes]) if config.latency else {}
    return found + [f"warning: {warning}" for warning in measurement_warnings(list(latencies.values()))]
