"""Results as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from ..search.targets import Target
from .candidates import Candidate
from .results import Results, macro_average
from .suite import TaskFile


def make_table(results: Results, sizes: Sequence[Candidate], files: Sequence[TaskFile], target: Target | None) -> Table:
    """One row per size: parameters, latency, macro average and every task, in percent; and a row of what guessing gets."""
    latencies = target and results.latencies([size.name for size in sizes], asdict(target))
    items = {file.name: results.score(sizes[0].name, file.name).items for file in files}
    latency_title = ["latency (95% interval)"] if latencies else []
    tasks = [f"{file.name}\n{file.metric}, {items[file.name]}" for file in files]
    table = Table("size", "parameters", *latency_title, "average", *tasks, caption="percent ± standard error; number of items")
    for size in sizes:
        scores = [results.score(size.name, file.name) for file in files]
        latency = [str(latencies[size.name])] if latencies else []
        cells = [percent(score.value, score.stderr) for score in scores]
        table.add_row(size.name, f"{size.parameters / 1e6:.2f} M", *latency, percent(*macro_average(scores)), *cells)
    chances = [results.chance(file.name) for file in files]
    empty = [""] if latencies else []
    table.add_section()
    table.add_row("chance", "", *empty, percent(sum(chances) / len(chances)), *map(percent, chances))
    return table


def percent(value: float, stderr: float | None = None) -> str:
    """A share in percent, with its standard error if it has one."""
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def remarks(results: Results, sizes: Sequence[Candidate], files: Sequence[TaskFile]) -> list[str]:
    """What did not fit the model's input."""
    found = []
    for file in files:
        truncated = max(results.score(size.name, file.name).truncated for size in sizes)
        if truncated:
            found.append(
                f"warning: {file.name}: {truncated} requests were longer than the model's input and lost their beginning"
            )
    return found
