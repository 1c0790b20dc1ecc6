"""How many sizes each search algorithm has to evaluate, on recorded perplexities and latencies.

    python recipes/benchmarks/search.py --data-dir DATA_DIR --output recipes/benchmarks/results/search

DATA_DIR has nas/hwgpt_bench: tables of random sizes of a GPT-2 supernet with their perplexity and their latency on seven devices.
They are samples of a huge space, so each column is regressed once and frozen, and every algorithm searches that. An evaluation
is one size that an algorithm has not evaluated before. Printed is the number of them until 99% of the best known
hypervolume (of everything that any run found, and a long run), the median over the seeds and the range; the reference point is
the worst perplexity and latency of the table. Plain NSGA-II is pymoo's with the operators that its documentation has for
integers, at the best of three population sizes for each column. Ours starts on the diagonal from the largest to the smallest
size, which is worth something by itself: a second row has the same NSGA-II with those sizes in its first population.
With --output each latency writes a JSON file, and one that is there is printed and not searched again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from search_tables import LATENCIES, PERPLEXITY, TABLES, Answers

from hf_elastic.search.algorithms.surrogate import START
from hf_elastic.search.algorithms.table import ALGORITHMS
from hf_elastic.search.frontier import Frontier
from hf_elastic.search.objectives import Objective
from hf_elastic.search.point import Point
from hf_elastic.search.storage import quiet
from hf_elastic.search.task import Task
from hf_elastic.utils.files import write_atomically

SHARE = 0.99
POPULATIONS = (20, 40, 100)  # of plain NSGA-II
BATCH = 16  # sizes that our algorithms evaluate at once: the default of search_subnets
LONG_RUN = 20000
PLAIN, HELPED = "NSGA-II (pymoo)", "NSGA-II (pymoo) from our first sizes"
Run = np.ndarray  # costs of every evaluated size in order, [evaluations, 2]


def run_own(name: str, answers: Answers, latency: str, seed: int, budget: int) -> Run:
    """A search by one of the algorithms of hf_elastic."""
    objectives = [Objective(PERPLEXITY, "minimize"), Objective(latency, "minimize", "ms")]
    found: dict[bytes, np.ndarray] = {}
    with quiet():
        algorithm = ALGORITHMS[name](Task(answers.encoding, objectives), BATCH, seed)
        while len(found) < budget:
            rows = algorithm.ask(BATCH)
            for row, costs in zip(rows, answers.costs(rows, latency)):
                if len(found) < budget:
                    found.setdefault(row.tobytes(), costs)
                algorithm.tell(row, dict(zip((PERPLEXITY, latency), costs.tolist())), 0.0)
    return np.array(list(found.values()))


def run_random(answers: Answers, latency: str, seed: int, budget: int) -> Run:
    """Sizes with every gene uniform."""
    rows = np.unique(answers.encoding.sample(np.random.default_rng(seed), budget), axis=0)
    return answers.costs(np.random.default_rng(seed).permutation(rows), latency)


def run_plain(answers: Answers, latency: str, seed: int, budget: int, population: int, is_helped: bool = False) -> Run:
    """NSGA-II of pymoo on integers; helped, it starts with the sizes that ours starts with, and random ones."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    found: dict[bytes, np.ndarray] = {}

    class Recorded(Problem):
        def __init__(self):
            super().__init__(n_var=len(answers.encoding), n_obj=2, xl=0, xu=answers.encoding.counts - 1, vtype=int)

        def _evaluate(self, places, out, *args, **options):
            rows = answers.encoding.canonical(places.astype(int))
            out["F"] = answers.costs(rows, latency)
            for row, costs in zip(rows, out["F"]):
                found.setdefault(row.tobytes(), costs)

    diagonal = answers.encoding.diagonal(START // 2)
    others = answers.encoding.sample(np.random.default_rng(seed), population - len(diagonal))
    algorithm = NSGA2(
        pop_size=population,
        sampling=np.concatenate([diagonal, others]) if is_helped else IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Recorded(), algorithm, ("n_eval", budget), seed=seed, verbose=False)
    return np.array(list(found.values()))


def volume(costs: np.ndarray, worst: np.ndarray) -> float:
    """Hypervolume of the frontier among costs `[N, 2]`."""
    objectives = [Objective("first", "minimize"), Objective("second", "minimize")]
    points = [Point({}, {"first": first, "second": second}) for first, second in costs.tolist()]
    return Frontier(objectives, points).hypervolume(dict(zip(("first", "second"), worst.tolist())))


def evaluations(run: Run, worst: np.ndarray, target: float) -> float:
    """How many evaluations of a run reach a hypervolume; infinite if all do not."""
    if volume(run, worst) < target:
        return float("inf")
    low, high = 0, len(run)  # `low` do not reach it, `high` do
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if volume(run[:middle], worst) >= target else (middle, high)
    return high


def search_all(answers: Answers, latency: str, arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """Every algorithm with every seed; plain NSGA-II once for each population."""
    seeds = range(arguments.seeds)
    runs = {name: [run_own(name, answers, latency, s, arguments.budget) for s in seeds] for name in arguments.algorithms}
    many = arguments.plain_budget
    for population in POPULATIONS:
        for name in (PLAIN, HELPED):
            found = [run_plain(answers, latency, s, many, population, is_helped=name == HELPED) for s in seeds]
            runs[f"{name}, population {population}"] = found
    runs["random"] = [run_random(answers, latency, seed, many) for seed in seeds]
    return runs


def score(answers: Answers, latency: str, runs: dict[str, list[Run]]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """By algorithm: evaluations of each seed until the target, and the median share of the best hypervolume at the end."""
    worst = answers.worst(latency)
    long_run = run_plain(answers, latency, len(runs["random"]), LONG_RUN, POPULATIONS[-1])
    best = volume(np.concatenate([long_run, *(run for several in runs.values() for run in several)]), worst)
    needed = {name: [evaluations(run, worst, SHARE * best) for run in several] for name, several in runs.items()}
    ends = {name: statistics.median(volume(run, worst) / best for run in several) for name, several in runs.items()}
    return needed, ends


def write(count: float) -> str:
    return "never" if count == float("inf") else f"{count:.0f}"


def describe(console: Console, name: str, answers: Answers) -> None:
    """Print what is searched, and how well it is known."""
    sizes = np.prod([float(count) for count in answers.encoding.counts])
    console.print(
        f"{name}: {answers.rows} rows of a space of up to {sizes:.0e} sizes; error on held-out rows, and rank correlation:"
    )
    errors = [f"{column} {held.error:.2%} {held.rank_correlation:.3f}" for column, held in answers.held_out.items()]
    console.print(", ".join(errors))


def search(answers: Answers, table: str, latency: str, arguments: argparse.Namespace) -> dict:
    """Search for one latency; what came out, for JSON."""
    runs = search_all(answers, latency, arguments)
    needed, ends = score(answers, latency, runs)
    held = {column: vars(answers.held_out[column]) for column in (PERPLEXITY, latency)}
    found = {
        name: {
            "evaluations_to_target": [None if count == float("inf") else count for count in counts],
            "evaluations": len(runs[name][0]),
            "share_at_the_end": round(ends[name], 5),
        }
        for name, counts in needed.items()
    }
    return {"table": table, "latency": latency, "target": SHARE, "batch": BATCH, "held_out": held, "algorithms": found}


def show(console: Console, record: dict) -> None:
    """Print what one search found; of each NSGA-II the best population."""
    found = record["algorithms"]
    middles = {name: statistics.median(counts_of(one)) for name, one in found.items()}
    fair, helped = (
        min(
            (name for name in found if name.startswith(f"{kind}, population")),
            key=lambda name: (middles[name], -found[name]["share_at_the_end"]),
        )
        for kind in (PLAIN, HELPED)
    )
    title = f"{record['table']}, {record['latency']}"
    printed = Table(title, f"evaluations to {SHARE:.0%}", "range", "hypervolume at the end", "times fewer")
    for name, one in found.items():
        if name.startswith(PLAIN) and name not in (fair, helped):
            continue
        counts = counts_of(one)
        spread = f"{write(min(counts))} to {write(max(counts))}"
        end = f"{one['share_at_the_end']:.4f} after {one['evaluations']}"
        fewer = factor(middles[name], middles[fair], found[fair]["evaluations"])
        printed.add_row(name, write(middles[name]), spread, end, fewer)
    console.print(printed)


def counts_of(found: dict) -> list[float]:
    """Evaluations of each seed until the target; infinite where it was not reached."""
    return [float("inf") if count is None else count for count in found["evaluations_to_target"]]


def factor(own: float, plain: float, budget: int) -> str:
    """How many times fewer evaluations; at least so many times where plain NSGA-II does not get there."""
    if own == float("inf"):
        return ""
    return f"{plain / own:.1f}" if plain < float("inf") else f"more than {budget / own:.1f}"


def main() -> int:
    """Search the tables and print; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with nas/hwgpt_bench")
    parser.add_argument("--tables", nargs="+", default=["gpt_s"], choices=TABLES, help="default: gpt_s")
    parser.add_argument("--latencies", nargs="+", default=list(LATENCIES), choices=LATENCIES, help="default: all")
    parser.add_argument("--algorithms", nargs="+", default=["surrogate"], choices=list(ALGORITHMS), help="default: surrogate")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each algorithm (count; default 10)")
    parser.add_argument("--budget", type=int, default=1000, help="evaluations of our algorithms (count; default 1000)")
    parser.add_argument(
        "--plain-budget", type=int, default=3000, help="evaluations of plain NSGA-II and of random (count; default 3000)"
    )
    parser.add_argument("--output", type=Path, help="folder for the results; default: they are only printed")
    arguments = parser.parse_args()
    console = Console(width=120)
    try:
        import pymoo  # noqa: F401
    except ImportError:
        print("search.py: pymoo is needed to compare with: pip install 'hf-elastic[benchmarks]'", file=sys.stderr)
        return 2
    try:
        for name in arguments.tables:
            answers = Answers(arguments.data_dir, name)
            describe(console, name, answers)
            for latency in arguments.latencies:
                file = arguments.output / f"{name}-{latency}.json" if arguments.output else None
                if file is None or not file.exists():
                    record = search(answers, name, latency, arguments)
                    if file is not None:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        write_atomically(file, json.dumps(record, indent=2) + "\n")
                show(console, json.loads(file.read_text()) if file else record)
    except FileNotFoundError as error:
        print(f"search.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
