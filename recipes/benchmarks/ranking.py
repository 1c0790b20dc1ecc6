"""Does the ranking hold? Closed-form proxies before training against validation perplexity after it.

    python recipes/benchmarks/ranking.py run --data-dir DATA_DIR                   20 trainings, 5 min 40 s on two cores
    python recipes/benchmarks/ranking.py run --data-dir DATA_DIR --size large      on a GPU
    python recipes/benchmarks/ranking.py table --output recipes/benchmarks/results/ranking    prints what is recorded

DATA_DIR has wikitext2. A quarter of the architectures is from the frontier that `search_subnets` finds for capacity against
FLOPs, a quarter from that for decoder parameters against FLOPs, half are random. FLOPs stand for latency here, so that the
sample is the same on every machine. All are GPT-2s cut out of one set of new weights, and trained on the same tokens in the
same order with the same settings. Each writes a JSON record of its own, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from ranking_runs import PRESETS, SAMPLE, Preset, set_up, train_one
from ranking_scores import score
from rich.console import Console
from rich.table import Table
from workers import Job, run_jobs

from hf_elastic.utils.files import write_atomically

TOGETHER = 5  # architectures that a process trains: starting one takes as long as a third of a small training
FEW = 4  # architectures: with fewer, no rank correlation is printed


def record_of(folder: Path, place: int) -> Path:
    """Where the record of an architecture is."""
    return folder / f"architecture-{place:03d}.json"


def run(args: argparse.Namespace, preset: Preset, folder: Path) -> None:
    """Train what is missing, `workers` at a time."""
    torch.set_num_threads(args.threads)
    architectures = set_up(preset, args.data_dir, folder, args.seed)
    missing = [place for place in range(len(architectures)) if not record_of(folder, place).exists()]
    count = -(-len(missing) // TOGETHER)
    # Every so manieth, so that what an interrupted benchmark has is of every origin.
    jobs = [job_of(args, folder, missing[first::count]) for first in range(count)]
    run_jobs(jobs, args.workers, args.threads, f"ranking, {args.size}: {len(missing)} of {len(architectures)} architectures")


def job_of(args: argparse.Namespace, folder: Path, places: list[int]) -> Job:
    """The process that trains some architectures, one after the other."""
    names = tuple(map(str, places))
    command = (sys.executable, __file__, "some", "--size", args.size, "--output", args.output, "--places", *names)
    return Job(f"architectures {', '.join(names)}", command, folder / f"from-{places[0]:03d}.log")


def some(args: argparse.Namespace, folder: Path) -> None:
    """Train architectures in this process, with the settings of the sample."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sample = json.loads((folder / SAMPLE).read_text())
    seed = sample["settings"].pop("seed")
    for place in args.places:
        if record_of(folder, place).exists():  # another process was faster
            continue
        record = train_one(Preset(**sample["settings"]), folder, sample["architectures"][place], seed)
        write_atomically(record_of(folder, place), json.dumps(record, indent=2) + "\n")


def table(folder: Path) -> None:
    """Print the architectures and the rank correlations.

    Raises:
        ValueError: too few are trained.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("architecture-*.json"))]
    if len(records) < FEW:
        raise ValueError(f"output: {folder} has {len(records)} records; {FEW} are needed for a rank correlation")
    console = Console(width=130)
    grid = Table("from", "layers", "hidden", "feed-forward", "decoder parameters", "MFLOPs", "perplexity", "seconds")
    for record in sorted(records, key=lambda record: record["perplexity"]):
        grid.add_row(record["origin"], *sizes_of(record), f"{record['perplexity']:.1f}", f"{record['seconds']:.0f}")
    console.print(grid)
    scores, pairs = score(records)
    tokens = {record["tokens"] for record in records}
    title = f"{len(records)} architectures, {', '.join(map(str, sorted(tokens)))} tokens each, {pairs} pairs within 10%"
    grid = Table("before training", *next(iter(scores.values())), title=f"{title}; 95% intervals", title_justify="left")
    for name, found in scores.items():
        grid.add_row(name, *(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in found.values()))
    console.print(grid)
    console.print(f"seconds of training, all: {sum(record['seconds'] for record in records):.0f}")


def sizes_of(record: dict) -> list[str]:
    """Cells of one architecture."""
    subnet, before = record["subnet"], record["before"]
    widths = subnet["intermediate_size"]
    layers = subnet["num_hidden_layers"] if "num_hidden_layers" in subnet else len(subnet["layers"])
    text = " ".join(map(str, widths)) if isinstance(widths, list) else str(widths)
    counts = f"{before['decoder_parameters']:,.0f}", f"{before['flops'] / 1e6:.0f}"
    return [str(layers), str(subnet["hidden_size"]), text, *counts]


def main() -> int:
    """Parse and run; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "some", "table"))
    parser.add_argument("--data-dir", help="folder that holds wikitext2; to run")
    parser.add_argument("--size", choices=tuple(PRESETS), default="small", help="small: on a CPU; large: on a GPU")
    parser.add_argument("--output", default="runs/ranking", help="folder for the results, one per size in it")
    parser.add_argument("--architectures", type=int, help="how many to train, at least 4 (count; default: of the size)")
    parser.add_argument("--tokens", type=int, help="that each architecture sees (count; default: of the size)")
    parser.add_argument("--learning-rate", type=float, help="largest learning rate (default: of the size)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample, the new weights and the order of the text")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (processes)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training")
    parser.add_argument("--places", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.command == "run" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds wikitext2")
    for name, least in (("architectures", FEW), ("tokens", 1), ("workers", 1), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; at least {least} is needed")
    if args.learning_rate is not None and not 0 < args.learning_rate < 1:
        parser.error(f"--learning-rate is {args.learning_rate}; it must be between 0 and 1")
    folder = Path(args.output) / args.size
    changes = {name: vars(args)[name] for name in ("architectures", "tokens", "learning_rate") if vars(args)[name] is not None}
    preset = dataclasses.replace(PRESETS[args.size], **changes)
    try:
        if args.command == "run":
            run(args, preset, folder)
        if args.command == "some":
            some(args, folder)
        else:
            table(folder)
    except (FileNotFoundError, ValueError) as error:
        if args.command == "some":
            raise
        print(f"ranking.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
