"""A comparison of policies as a table, and as a picture over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..utils.files import staged_file
from .compare import Comparison
from .simulate import Outcome

BINS = 60
UNANSWERED_COLOUR = "#999999"


def make_table(comparison: Comparison):
    """One row for each policy at each load."""
    from rich.table import Table

    config = comparison.config
    title = (
        f"{Path(config.trace).name}: objective {config.latency_objective:g} ms, requests of {comparison.mean_length:.0f} tokens, "
        f"of which {comparison.profile.names[0]} answers {comparison.capacity:.0f} per second"
    )
    load = "users" if config.is_closed else "load"
    table = Table(load, "policy", "in time", "quality", "p50", "p95", "p99", "goodput", "answered by", "switches", title=title)
    for index, run in enumerate(comparison.runs):
        if index and run.load != comparison.runs[index - 1].load:
            table.add_section()
        found = run.outcome.summary()
        shares = [f"{name} {share:.0%}" for name, share in found["shares"].items() if share >= 0.005]
        quality = "" if found["quality"] is None else f"{found['quality']:.2f}"
        times = ["" if found[name] is None else f"{found[name]:.1f} ms" for name in ("p50_ms", "p95_ms", "p99_ms")]
        policy = f"{run.policy} (best alone)" if run.is_best_static else run.policy
        cells = [f"{found['attainment']:.1%}", quality, *times, f"{found['goodput']:.0f}/s", ", ".join(shares)]
        table.add_row(f"{run.load:.3g}", policy, *cells, str(found["switches"]))
    return table


def draw(comparison: Comparison, path: str | Path) -> None:
    """The first policy over time, a column for each load: requests that come, sizes that answer them, and latency."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    config = comparison.config
    runs = [run for run in comparison.runs if run.policy == config.policy[0]]
    figure = Figure(figsize=(2.2 + 3.0 * len(runs), 6.4), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(runs), squeeze=False, sharex="col", sharey="row")
    for column, run in zip(grid.T, runs):
        what = f"users: {run.load}" if config.is_closed else f"{run.load:.3g} x what {run.outcome.names[0]} sustains"
        column[0].set_title(what, fontsize=9)
        _draw_column(column, run.outcome, comparison.capacity)
    for axes, label in zip(grid[:, 0], ("requests per second", "share of requests", "latency (ms)")):
        axes.set_ylabel(label)
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set_ylim(0, 1)
    grid[2, 0].set_yscale("log")
    low, high = grid[2, 0].get_ylim()
    grid[2, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    grid[2, 0].yaxis.set_major_formatter("{x:g}")
    grid[2, 0].yaxis.set_minor_formatter("")
    for axes in grid[:, -1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    figure.suptitle(f"policy {config.policy[0]}, {Path(config.trace).name}", fontsize=10)
    figure.align_ylabels(grid[:, 0])
    figure.tight_layout()
    with staged_file(path) as staged:
        figure.savefig(staged, format=Path(path).suffix[1:])


def _draw_column(column, outcome: Outcome, capacity: float) -> None:
    rate, shares, latency = column
    last = outcome.arrivals.max()
    edges = np.linspace(0, last if last > 0 else 1.0, BINS + 1)
    place = np.clip(np.digitize(outcome.arrivals, edges) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    rate.stairs(counts / np.diff(edges), edges, color="#4c72b0", label="come")
    rate.axhline(capacity, color="#c44e52", linestyle="--", linewidth=1, label=f"{outcome.names[0]} sustains")
    below = np.zeros(BINS)
    for index, name in enumerate([*outcome.names, "no answer"]):
        is_answer = index < len(outcome.names)
        chosen = outcome.sizes == index if is_answer else outcome.sizes < 0
        share = np.bincount(place[chosen], minlength=BINS) / np.maximum(counts, 1)
        colour = _colour(index, len(outcome.names)) if is_answer else UNANSWERED_COLOUR
        shares.stairs(below + share, edges, baseline=below, fill=True, color=colour, label=name)
        below = below + share
    centres = (edges[:-1] + edges[1:]) / 2
    answered = np.isfinite(outcome.latencies)
    for percentile, style in ((50, "-"), (99, ":")):
        values = [
            np.percentile(one, percentile) * 1000 if len(one := outcome.latencies[answered & (place == index)]) else np.nan
            for index in range(BINS)
        ]
        latency.plot(centres, values, style, color="#4c72b0", linewidth=1.2, label=f"p{percentile}")
    latency.axhline(outcome.objective * 1000, color="#c44e52", linestyle="--", linewidth=1, label="objective")
    latency.set_xlabel("seconds")


def _colour(index: int, count: int):
    """From dark for the largest size to light for the smallest."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.15 + 0.8 * index / max(count - 1, 1))
