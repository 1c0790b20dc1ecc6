"""What lts.py makes of its measurements: ratios to homogeneous models, a frontier, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from hf_elastic.measure.latency import Latency
from hf_elastic.measure.values import LATENCY, MEMORY
from hf_elastic.search.frontier import Frontier
from hf_elastic.search.objectives import OBJECTIVES
from hf_elastic.search.point import Point

# The paper's, at the perplexity of 16 layers: (latency, peak memory).
PAPER = {"gpt2": (1.5, 1.2), "transfo_xl": (2.5, 2.0)}


def compare(measured: Sequence[Mapping], quality: str) -> list[dict]:
    """For each homogeneous model the fastest and the leanest found one with at least its decoder parameters.

    Returns:
        one entry per homogeneous model that some found model reaches: its name, and for "latency" and "memory" the ratio
        (homogeneous / found) and the found model's name. `low` is the ratio of the nearest ends of the ranges.
    """
    found = [one for one in measured if not one["is_baseline"]]
    rows = []
    for baseline in measured:
        enough = [one for one in found if one[quality] >= baseline[quality]]
        if not baseline["is_baseline"] or not enough:
            continue
        fastest = min(enough, key=lambda one: one["latency"]["median_ms"])
        leanest = min(enough, key=lambda one: one["memory"]["peak_mb"])
        rows.append(
            {
                "baseline": baseline["name"],
                "latency": {
                    "ratio": baseline["latency"]["median_ms"] / fastest["latency"]["median_ms"],
                    "low": baseline["latency"]["low_ms"] / fastest["latency"]["high_ms"],
                    "found": fastest["name"],
                },
                "memory": {
                    "ratio": baseline["memory"]["peak_mb"] / leanest["memory"]["peak_mb"],
                    "found": leanest["name"],
                },
            }
        )
    return rows


def frontier_of(measured: Sequence[Mapping], objectives: Sequence[str]) -> Frontier:
    """Found and homogeneous models together, all measured."""
    goals = [OBJECTIVES[name] for name in objectives]
    points = []
    for one in measured:
        latency = Latency.from_dict(one["latency"])
        values = {LATENCY: latency.median_ms, MEMORY: one["memory"]["peak_mb"], "parameters": one["parameters"]}
        values |= {goal.name: one[goal.name] for goal in goals if goal.name in one}
        details = {LATENCY: [latency.low_ms, latency.high_ms], "portability": one["portability"]}
        points.append(Point(one["subnet"], values, details, one["name"]))
    return Frontier(goals, points)


def best(record: Mapping, cost: str) -> dict:
    """The comparison with the largest ratio."""
    return max(record["comparison"], key=lambda row: row[cost]["ratio"])


def deviation(record: Mapping) -> dict[str, float]:
    """Mean absolute error of the predictions of found models, relative to what was then measured."""
    pairs = {LATENCY: [], MEMORY: []}
    for one in record["measured"]:
        if one["predicted"] is not None and not one["is_baseline"]:
            pairs[LATENCY].append(one["predicted"][LATENCY] / one["latency"]["median_ms"] - 1)
            pairs[MEMORY].append(one["predicted"][MEMORY] / one["memory"]["peak_mb"] - 1)
    return {name: float(np.mean(np.abs(errors))) for name, errors in pairs.items() if errors}


def print_report(record: Mapping) -> None:
    """The table, then what it comes to."""
    console = Console()
    by_name = {one["name"]: one for one in record["measured"]}
    table = Table("homogeneous", "decoder parameters", "latency", "memory", "faster", "found", "leaner", "found")
    for row in record["comparison"]:
        one = by_name[row["baseline"]]
        cells = [one["name"], f"{one['decoder_parameters'] / 1e6:.1f} M", f"{one['latency']['median_ms']:.0f} ms"]
        cells += [f"{one['memory']['peak_mb']:.0f} MB", f"{row['latency']['ratio']:.2f}x", row["latency"]["found"]]
        table.add_row(*cells, f"{row['memory']['ratio']:.2f}x", row["memory"]["found"])
    console.print(table)
    used = [row[cost]["found"] for row in record["comparison"] for cost in ("latency", "memory")]
    for name in dict.fromkeys(used):
        one = by_name[name]
        latency, memory = one["latency"]["median_ms"], one["memory"]["peak_mb"]
        costs = f"{one['decoder_parameters'] / 1e6:.1f} M, {latency:.0f} ms, {memory:.0f} MB"
        print(f"{name} ({one['portability']}, {costs}): {one['subnet']}")
    for name, text in record["predictors"].items():
        after = deviation(record).get(name)
        print(f"{name}, held out: {text}" + ("" if after is None else f"; of what was then measured: {100 * after:.1f}%"))
    for cost, paper in zip(("latency", "memory"), PAPER[record["backbone"]]):
        row = best(record, cost)
        low = f" (nearest ends of the ranges: {row[cost]['low']:.2f}x)" if "low" in row[cost] else ""
        print(
            f"largest ratio of {cost} at equal or more decoder parameters: {row[cost]['ratio']:.2f}x{low}, {row['baseline']} "
            f"against {row[cost]['found']}; the paper reports up to {paper}x"
        )
    seconds = sum(record["seconds"].values())
    print(f"{record['predicted_frontier']} points on the predicted frontier; {seconds:.0f} s in all, measuring included")
