"""Every size of one elastic model against the same sizes trained on their own.

    python recipes/benchmarks/sizes.py run sst2 --data-dir DATA_DIR      trains what is missing, then prints the tables
    python recipes/benchmarks/sizes.py run sst2 --data-dir DATA_DIR --part ablation --max-train-rows 6000 --output runs/ablation
    python recipes/benchmarks/sizes.py cost sst2 --data-dir DATA_DIR     time of one elastic training / of one training per size
    python recipes/benchmarks/sizes.py cost qnli --data-dir DATA_DIR --names "elastic" "dropout in the largest" --rounds 4
    python recipes/benchmarks/sizes.py table sst2 --output recipes/benchmarks/results    prints what is recorded

A *run* is one training with one seed. For GLUE, `finetuned` comes first: MiniLM fine-tuned as a whole, which is then ranked and
converted, and which teaches. Every other run starts from that same converted checkpoint (wikitext2: from the same new weights),
sees the same rows and makes the same number of updates: `elastic` and its variants, `plain/SIZE` (cut out and trained alone) and
`distilled/SIZE` (cut out and distilled alone). The settings are those of the task's recipe (recipes/minilm/TASK,
recipes/gpt2/wikitext2). Every number is of a model of its own: elastic sizes are extracted. Each run writes a JSON file, so that
an interrupted benchmark goes on where it was; those of the README are in recipes/benchmarks/results. The seconds in there are no
comparison: several runs shared the machine. `cost` is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sizes_runs import ABLATION, METRIC, RECIPES, VARIANTS, Runs, seconds_of, train_run
from workers import Job, run_jobs

from hf_elastic.utils.files import write_atomically

COST_STEPS = 40  # of each training, to compare their times
COST = "cost.json"


def names_of(runs: Runs, part: str) -> list[str]:
    """Names of the runs of a part, in the order to train them."""
    first = [] if runs.is_language_model else ["finetuned"]
    if part == "ablation":
        return [*first, *ABLATION]
    sizes = [f"{kind}/{size}" for size in runs.convert["subnets"] for kind in runs.kinds_alone]
    return [*first, "elastic", "plain/largest", *sizes]


def runs_of(args: argparse.Namespace) -> Runs:
    """What the command line names."""
    bf16 = None if args.bf16 is None else args.bf16 == "true"
    return Runs(args.task, args.data_dir, args.output, args.max_train_rows, bf16)


def run(args: argparse.Namespace) -> None:
    """Train the missing runs, `workers` at a time, each in a process of its own with `threads` threads."""
    runs = runs_of(args)
    names = args.names or names_of(runs, args.part)
    missing = [(name, seed) for seed in args.seeds for name in names if not runs.result(name, seed).exists()]
    run_jobs([job_of(runs, args, *run) for run in missing], args.workers, args.threads, f"{args.task}, {args.part}")


def job_of(runs: Runs, args: argparse.Namespace, name: str, seed: int) -> Job:
    """The process that trains one run; all start from the fine-tuned model, if the task has one."""
    command = [sys.executable, __file__, "one", args.task, "--data-dir", args.data_dir, "--output", args.output]
    if args.max_train_rows:
        command += ["--max-train-rows", str(args.max_train_rows)]
    if args.bf16:
        command += ["--bf16", args.bf16]
    needs = runs.result("finetuned", seed) if "model" in runs.convert and name != "finetuned" else None
    command = (*command, "--names", name, "--seeds", str(seed))
    return Job(f"{name}, seed {seed}", command, runs.result(name, seed).with_suffix(".log"), needs)


def one(args: argparse.Namespace) -> None:
    """Train a single run in this process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    runs = runs_of(args)
    for name in args.names:
        for seed in args.seeds:
            write_atomically(runs.result(name, seed), json.dumps(train_run(runs, name, seed), indent=2) + "\n")


def cost(args: argparse.Namespace) -> None:
    """Time the first steps of every training, in turn and alone on the machine; recorded, with what came before.

    With `names` only those are timed, compared with the first of them, and nothing is recorded.
    """
    torch.set_num_threads(2)
    runs, seed = runs_of(args), args.seeds[0]
    if "model" in runs.convert and not runs.finetuned(seed).exists():
        sys.exit(f"{runs.finetuned(seed)} is missing: run first `sizes.py run {args.task} --names finetuned --seeds {seed}`")
    names = args.names or [name for name in names_of(runs, "sizes") if name != "finetuned"]
    seconds_of(runs, "plain/largest", seed, 5)
    if args.names:
        return compare([{name: seconds_of(runs, name, seed, COST_STEPS) for name in names} for _ in range(args.rounds)])
    rounds = cost_rounds(runs)
    for _ in range(args.rounds):
        rounds.append({name: round(seconds_of(runs, name, seed, COST_STEPS), 2) for name in names})
        write_atomically(
            runs.folder / COST, json.dumps({"task": args.task, "steps": COST_STEPS, "rounds": rounds}, indent=2) + "\n"
        )
        print(show_cost(runs, rounds[-1:]), flush=True)


def compare(rounds: list[dict[str, float]]) -> None:
    """Print the time of each training, and its ratio to the first; not recorded."""
    first, *_ = rounds[0]
    for name in rounds[0]:
        seconds = ", ".join(f"{one[name]:.1f}" for one in rounds)
        ratio = np.median([one[name] / one[first] for one in rounds])
        print(f"{name}: {ratio:.2f} of {first} (median of {len(rounds)} rounds); {COST_STEPS} steps, seconds: {seconds}")


def cost_rounds(runs: Runs) -> list[dict[str, float]]:
    """Seconds of each training in every round that is recorded."""
    file = runs.folder / COST
    return json.loads(file.read_text())["rounds"] if file.exists() else []


def show_cost(runs: Runs, rounds: list[dict[str, float]]) -> str:
    """Time of the elastic training / sum of the times of the sizes trained one by one."""
    lines = []
    for kind in runs.kinds_alone:
        alone = ["plain/largest", *(f"{kind}/{size}" for size in runs.convert["subnets"])]
        ratios = sorted(one["elastic"] / sum(one[name] for name in alone) for one in rounds)
        detail = ", ".join(f"{name} {np.median([one[name] for one in rounds]):.1f}" for name in ("elastic", *alone))
        spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)" if len(ratios) > 1 else ""
        lines.append(f"together / one by one, {kind}: {np.median(ratios):.2f}{spread}; {COST_STEPS} steps, seconds: {detail}")
    return "\n".join(lines)


def spread(values: list[float], metric: str) -> str:
    """Mean, and the sample standard deviation where there are several: percent, or perplexity."""
    if not values:
        return "-"
    scaled = np.asarray(values) * (1 if metric == "perplexity" else 100)
    deviation = f" ± {np.std(scaled, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(scaled):.1f}{deviation}"


def paired_table(runs: Runs, names: list[str], metric: str) -> Table:
    """The elastic sizes minus the same sizes trained on their own, seed by seed: runs of a seed share data and start."""
    grid = Table("elastic minus", *names, "mean of the smaller", title="paired by seed: mean ± standard error")
    for kind in runs.kinds_alone:
        columns = [paired_differences(runs, kind, size, metric) for size in names]
        seeds = set.intersection(*(set(column) for column in columns[1:]))
        smaller = [float(np.mean([column[seed] for column in columns[1:]])) for seed in sorted(seeds)]
        grid.add_row(kind, *(mean_and_error(list(column.values())) for column in columns), mean_and_error(smaller))
    return grid


def paired_differences(runs: Runs, kind: str, size: str, metric: str) -> dict[int, float]:
    """Seed -> what elastic training gives a size above (below, if negative) training it on its own; points or perplexity."""
    scale = 1 if metric == "perplexity" else 100
    alone = {r["seed"]: r["sizes"][size][metric] for r in runs.results(f"{kind}/{size}")}
    elastic = {r["seed"]: r["sizes"][size][metric] for r in runs.results("elastic")}
    return {seed: scale * (elastic[seed] - alone[seed]) for seed in sorted(elastic.keys() & alone.keys())}


def mean_and_error(values: list[float]) -> str:
    """Mean, and its standard error where there are several."""
    if not values:
        return "-"
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{error}"


def table(args: argparse.Namespace) -> None:
    """Print the results that there are."""
    runs = runs_of(args)
    metric = METRIC.get(args.task, "accuracy")
    names = ["largest", *runs.convert["subnets"]]
    console = Console(width=130)
    shares = cost_shares(runs, names)
    columns = {"elastic": "elastic", "plain": "on its own", "distilled": "distilled on its own"}
    grid = Table("size", "FLOPs", "parameters", *columns.values(), title=f"{args.task}: {metric}, mean ± deviation over seeds")
    for size in names:
        cells = []
        for kind in columns:
            found = runs.results(kind if kind == "elastic" else f"{kind}/{size}")
            cells.append(spread([r["sizes"][size][metric] for r in found], metric))
        grid.add_row(size, *shares[size], *cells)
    console.print(grid)
    console.print(paired_table(runs, names, metric))
    found = [r["sizes"]["largest"][metric] for r in runs.results("finetuned")]
    console.print(f"the fine-tuned model that all start from: {spread(found, metric)}")
    if rounds := cost_rounds(runs):
        console.print(show_cost(runs, rounds))
    grid = Table("variant", *names, "mean of the sizes", title=f"{args.task}: what each part adds")
    for name in VARIANTS:
        found = runs.results(name)
        if found:
            cells = [spread([r["sizes"][size][metric] for r in found], metric) for size in names]
            mean = spread([float(np.mean([r["sizes"][size][metric] for size in names])) for r in found], metric)
            grid.add_row(name, *cells, mean)
    console.print(grid)


def cost_shares(runs: Runs, names: list[str]) -> dict[str, tuple[str, str]]:
    """FLOPs relative to the largest, and parameters, of each size."""
    model = runs.without_weights()
    full = model.flops_of("largest", sequence_length=32)
    share = {name: f"{model.flops_of(name, sequence_length=32) / full:.0%}" for name in names}
    return {name: (share[name], f"{model.num_parameters_of(name) / 1e6:.1f} M") for name in names}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "cost", "table"))
    parser.add_argument("task", choices=tuple(RECIPES))
    parser.add_argument("--data-dir", help="folder that holds glue/TASK and wikitext2; to train")
    parser.add_argument("--output", default="runs/sizes", help="folder for the results")
    parser.add_argument("--part", choices=("sizes", "ablation"), default="sizes")
    parser.add_argument("--max-train-rows", type=int, help="training rows, if not the recipe's number; needs its own --output")
    parser.add_argument("--bf16", choices=("true", "false"), help="bfloat16, if not as the recipe says; needs its own --output")
    parser.add_argument("--names", nargs="+", help="only these runs; cost compares them with the first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (processes)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of cost")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    args = parser.parse_args()
    if args.command != "table" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds glue/TASK and wikitext2")
    {"run": run, "one": one, "cost": cost, "table": table}[args.command](args)
    if args.command == "run":
        table(args)


if __name__ == "__main__":
    main()
