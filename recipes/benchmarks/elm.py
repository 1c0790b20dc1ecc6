"""ELM at nano scale: is what is found better than what it is compared with, and does the supernet rank as training alone does?

    python recipes/benchmarks/elm.py run causal --data-dir DATA_DIR --seeds 0 1 2
    python recipes/benchmarks/elm.py run masked --data-dir DATA_DIR --seeds 0 1 2
    python recipes/benchmarks/elm.py tasks masked --data-dir DATA_DIR --tasks sst2 mrpc qnli
    python recipes/benchmarks/elm.py latency causal --data-dir DATA_DIR
    python recipes/benchmarks/elm.py table causal --output recipes/benchmarks/results/elm

DATA_DIR has wikitext2, and glue for tasks. For each seed two supernets are trained as recipes/elm/nano says, one with each loss
family (relational: PKD of parts, DIST; mse: hidden states, soft cross-entropy), and searched under the recipe's cap. What each
search has found, --architectures random ones of the size of the first, all-bert and all-mobilebert of the nearest size, and
--spread random ones of any size are then trained from new weights, all with the same steps and the relational losses; the first
also with the mse losses. Rank correlations are Spearman's between the loss of an architecture in a supernet and alone. Every run
leaves its folder and a JSON record: an interrupted benchmark goes on where it was. `--smoke` does all at the smallest size.
found-growth is found in a third supernet, relational, whose feed-forward widths grow instead of being chosen (dynamic dimension);
found-heads is found-relational with its heads partitioned anew (dynamic heads).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

from elm_runs import FAMILIES, SUPERNETS, Runs, anywhere, of_one_block, of_size
from rich.console import Console
from rich.table import Table

from hf_elastic.core.errors import UserError

NAMED = ("found-relational", "found-mse", "found-growth", "found-heads", "all-bert", "all-mobilebert")
FEW = 4  # architectures: with fewer, no rank correlation is printed


def run(runs: Runs, args: argparse.Namespace) -> None:
    """Train and record what is missing, for one seed."""
    for kind in SUPERNETS:
        runs.supernet(kind)
    models = {family: runs.model(family) for family in FAMILIES[runs.direction]}
    model = models["relational"]
    sizes = {f"found-{kind}": runs.found(kind) for kind in models}
    parameters = model.num_parameters_of(sizes["found-relational"])
    sizes["found-growth"] = runs.model("growth").subnet(runs.found("growth"))
    sizes["found-heads"] = runs.merged(sizes["found-relational"])
    for block in model.space["block_type"]:
        sizes[f"all-{block}"] = of_one_block(model, block, parameters)
    for number, subnet in enumerate(of_size(model, parameters, args.architectures, runs.seed)):
        sizes[f"random-{number:02d}"] = subnet
    for number, subnet in enumerate(anywhere(model, args.spread, runs.seed)):
        sizes[f"spread-{number:02d}"] = subnet
    passes = {family: runs.held_out(family, one) for family, one in models.items()}
    for name, subnet in sizes.items():
        trained = ("relational", "mse") if name == "found-relational" else ("relational",)
        losses = {family: runs.alone(name, subnet, family)["eval_loss"] for family in trained}
        values = {"subnet": model.subnet(subnet).to_dict(), "parameters": model.num_parameters_of(subnet), "alone": losses}
        # A single-block architecture may be shallower than what the supernet was trained for.
        in_supernet = {family: passes[family](one.view(subnet))["loss"] for family, one in models.items()}
        runs.record(name, {**values, "supernet": in_supernet})


def tasks(runs: Runs, args: argparse.Namespace) -> None:
    """Fine-tune the architectures that are compared; the accuracies go into their records."""
    best = best_random(runs.records, runs.seed)
    for name in (*NAMED, *([best] if best else [])):
        record = read(runs.records, name, runs.seed)
        scores = {task: runs.task(name, "relational", task) for task in args.tasks}
        runs.record(name, {**record, "tasks": {**record.get("tasks", {}), **scores}})


def latency(runs: Runs, args: argparse.Namespace) -> None:
    """Time the compared architectures side by side; the medians go into their records."""
    from hf_elastic.measure.workload import Workload

    model, best = runs.model("relational"), best_random(runs.records, runs.seed)
    names = [*NAMED, *([best] if best else [])]
    records = {name: read(runs.records, name, runs.seed) for name in names}
    subnets = {name: model.subnet(record["subnet"]) for name, record in records.items()}
    measured = Workload(sequence_length=64).measure(model, list(dict.fromkeys(subnets.values())))
    for name, record in records.items():
        one = measured[subnets[name]]
        runs.record(name, {**record, "latency_ms": [one.median_ms, one.low_ms, one.high_ms]})


def read(folder: Path, name: str, seed: int) -> dict:
    """The record of a run."""
    return json.loads((folder / f"{name}-{seed}.json").read_text())


def seeds_of(folder: Path) -> list[int]:
    """The seeds that have a found model."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.glob("found-relational-*.json"))


def named(folder: Path, kind: str, seed: int) -> dict[str, dict]:
    """The records of a kind of architecture."""
    paths = sorted(folder.glob(f"{kind}-*-{seed}.json"))
    return {path.stem.rpartition("-")[0]: json.loads(path.read_text()) for path in paths}


def best_random(folder: Path, seed: int) -> str | None:
    """The random architecture of the found one's size with the least loss."""
    records = named(folder, "random", seed)
    return min(records, key=lambda name: records[name]["alone"]["relational"], default=None)


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1, the mean of them among equals."""
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def spearman(ours: list[float], theirs: list[float]) -> float:
    """Spearman's rank correlation."""
    return statistics.correlation(ranks(ours), ranks(theirs))


def mean_and_spread(values: list[float], digits: int = 3) -> str:
    """A mean, with the sample deviation where there are several."""
    text = f"{statistics.mean(values):.{digits}f}" if values else "-"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def table(folder: Path) -> None:
    """Print what is recorded.

    Raises:
        ValueError: nothing is.
    """
    seeds = seeds_of(folder)
    if not seeds:
        raise ValueError(f"output: {folder} has no records")
    console = Console(width=130)
    rows = {name: [(seed, name) for seed in seeds] for name in NAMED}
    rows["best random"] = [(seed, name) for seed in seeds if (name := best_random(folder, seed))]
    kept = {name: [read(folder, one, seed) for seed, one in pairs] for name, pairs in rows.items()}
    for seed in seeds:
        kept.setdefault("random, mean", []).append(mean_record(named(folder, "random", seed)))
    measured = sorted({task for records in kept.values() for record in records for task in record.get("tasks", {})})
    title = f"seeds {', '.join(map(str, seeds))}; trained alone with the relational losses; ± sample deviation over seeds"
    grid = Table("architecture", "parameters", "loss", "perplexity", "ms", *measured, title=title, title_justify="left")
    for name, records in kept.items():
        losses = [record["alone"]["relational"] for record in records if record]
        times = [record["latency_ms"][0] for record in records if record and "latency_ms" in record]
        scores = [[100 * r["tasks"][task] for r in records if r and task in r.get("tasks", {})] for task in measured]
        count = [record["parameters"] for record in records if record]
        grid.add_row(
            name, f"{statistics.mean(count):,.0f}" if count else "-", mean_and_spread(losses),
            mean_and_spread([math.exp(loss) for loss in losses], 1), mean_and_spread(times, 2),
            *(mean_and_spread(one, 1) for one in scores),
        )  # fmt: skip
    console.print(grid)
    by_mse = [read(folder, "found-relational", seed)["alone"].get("mse") for seed in seeds]
    console.print(f"found-relational trained with the mse losses instead: loss {mean_and_spread([x for x in by_mse if x])}")
    correlations(folder, seeds, console)


def mean_record(records: dict[str, dict]) -> dict:
    """The mean of several architectures."""
    if not records:
        return {}
    loss = statistics.mean(record["alone"]["relational"] for record in records.values())
    return {"alone": {"relational": loss}, "parameters": statistics.mean(record["parameters"] for record in records.values())}


def correlations(folder: Path, seeds: list[int], console: Console) -> None:
    """Print how well each supernet ranks what was trained alone."""
    grid = Table("architectures", "supernet", "Spearman, each seed", "mean", title="supernet against alone", title_justify="left")
    for kind, title in (("random", "of the found one's size"), ("spread", "of any size")):
        for family in ("relational", "mse"):
            found = []
            for seed in seeds:
                records = named(folder, kind, seed).values()
                if len(records) >= FEW:
                    pairs = [(record["supernet"][family], record["alone"]["relational"]) for record in records]
                    found.append(spearman(*map(list, zip(*pairs))))
            if found:
                grid.add_row(title, family, " ".join(f"{value:.2f}" for value in found), mean_and_spread(found, 2))
    console.print(grid)


def main() -> int:
    """Parse and run; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "tasks", "latency", "table"))
    parser.add_argument("direction", choices=tuple(FAMILIES))
    parser.add_argument("--data-dir", help="folder that holds wikitext2, and glue for tasks; not for table")
    parser.add_argument("--output", default="runs/elm/benchmark", help="folder for the results, one per direction in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of everything for each")
    parser.add_argument("--architectures", type=int, default=20, help="random ones of the found one's size (count)")
    parser.add_argument("--spread", type=int, default=20, help="random ones of any size, for the rank correlation (count)")
    parser.add_argument("--supernet-steps", type=int, help="of a supernet's training (steps; default: the recipe's)")
    parser.add_argument("--alone-steps", type=int, help="of a training alone (steps; default: the recipe's)")
    parser.add_argument("--tasks", nargs="+", default=["sst2"], help="of GLUE, for tasks")
    parser.add_argument("--smoke", action="store_true", help="everything at its smallest, to see that it works")
    args = parser.parse_args()
    if args.command != "table" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds wikitext2")
    steps = {"supernet": args.supernet_steps, "alone": args.alone_steps}
    try:
        if args.command == "table":
            table(Path(args.output) / args.direction)
            return 0
        for seed in args.seeds:
            runs = Runs(args.direction, seed, args.data_dir, args.output, args.smoke, steps)
            {"run": run, "tasks": tasks, "latency": latency}[args.command](runs, args)
    except (FileNotFoundError, ValueError, UserError) as error:
        print(f"elm.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
