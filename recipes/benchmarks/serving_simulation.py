"""What changing the size buys a server, simulated: deadlines met and quality, against each size alone.

    python recipes/benchmarks/serving_simulation.py run --data-dir DATA_DIR --profile PROFILE [--objectives 50 100]
    python recipes/benchmarks/serving_simulation.py table      prints what is recorded

DATA_DIR has traces/. PROFILE is a serving profile with the quality of each size. Loads are 0.5, 1, 2 and 4 times what the largest
size sustains. Each trace, objective and seed is a record: an interrupted run goes on where it was. In the table, "static" is the
size that was best alone in hindsight. "At its quality" is the most that a size of at least the quality of `slo` has in time, and
how many times as much `slo` has. "At its attainment" is the best quality of a size that has as much in time (half a point less at
most), and what `slo` has more.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hf_elastic.serving.compare import compare
from hf_elastic.serving.costs import ServingProfile
from hf_elastic.serving.simulate_config import SimulateConfig
from hf_elastic.utils.files import write_atomically
from hf_elastic.utils.progress import Bar

LOADS = [0.5, 1.0, 2.0, 4.0]
TRACES = {
    "poisson": {"trace": "poisson", "duration": 60.0},
    "burst": {"trace": "burst", "duration": 60.0},
    "diurnal": {"trace": "diurnal", "duration": 60.0},
    "twitter": {"trace": "twitter_2018_per_second.txt.gz", "start": 0.0, "duration": 120.0},
    "azure": {"trace": "azure_llm_2023_code.csv.gz"},
    "mooncake": {"trace": "mooncake_synthetic.csv.gz"},
}
EQUAL = 0.005  # what two attainments may differ by and be called the same


def run(args: argparse.Namespace) -> None:
    """Make every record that is not there."""
    profile = ServingProfile.load(args.profile)
    if missing := [size.name for size in profile.sizes if size.quality is None]:
        raise SystemExit(f"{args.profile} has no quality of {', '.join(missing)}")
    for name in args.traces:
        options = dict(TRACES[name])
        if options["trace"] not in ("poisson", "burst", "diurnal"):
            options["trace"] = str(args.data_dir / "traces" / options["trace"])
        for objective in args.objectives:
            for seed in args.seeds:
                path = args.output / f"{name}-{objective:g}-{seed}.json"
                if path.is_file():
                    continue
                config = SimulateConfig(
                    **options,
                    load=LOADS,
                    policy=["slo", "table"],
                    latency_objective=objective,
                    mean_length=args.mean_length,
                    deadlines=args.deadlines,
                    seed=seed,
                )
                with Bar(True) as bar:
                    bar.start(path.stem, 0, None)
                    record = compare(profile, config, bar.update).record()
                record["config"]["trace"] = Path(record["config"]["trace"]).name
                write_atomically(path, json.dumps(record, indent=1) + "\n")


def table(args: argparse.Namespace) -> None:
    """Print the records, as means over seeds."""
    found: dict[tuple[str, float], list[dict]] = {}
    for path in args.output.glob("*.json"):
        name, objective, _ = path.stem.rsplit("-", 2)
        found.setdefault((name, float(objective)), []).append(json.loads(path.read_text()))
    columns = ("trace", "objective", "load", "slo", "table", "static", "at its quality", "at its attainment")
    shown = Table(*columns, title="in time, quality of the answers")
    for (name, objective), records in sorted(found.items(), key=lambda item: (list(TRACES).index(item[0][0]), item[0][1])):
        for load in LOADS:
            shown.add_row(name, f"{objective:g} ms", f"{load:g}", *row(records, load))
        shown.add_section()
    Console(width=150).print(shown)


def row(records: list[dict], load: float) -> list[str]:
    """The cells of one load."""
    runs = [[run for run in record["runs"] if run["load"] == load] for record in records]
    means = {
        policy: [
            statistics.mean(run[key] for one in runs for run in one if run["policy"] == policy)
            for key in ("attainment", "quality")
        ]
        for policy in (run["policy"] for run in runs[0])
    }
    best = statistics.mode(run["policy"] for one in runs for run in one if run["best_static"])
    (attainment, quality), alone = means["slo"], [means[policy] for policy in means if policy.startswith("static:")]
    as_good = max((one for one, its_quality in alone if its_quality >= quality), default=None)
    as_reliable = max((its_quality for one, its_quality in alone if one >= attainment - EQUAL), default=None)
    return [
        *(cell(*means[policy]) for policy in ("slo", "table")),
        f"{cell(*means[best])} {best.partition(':')[2]}",
        "" if as_good is None else f"{as_good:.1%}, x {attainment / as_good:.2f}",
        "none has" if as_reliable is None else f"{as_reliable:.2f}, {quality - as_reliable:+.2f}",
    ]


def cell(attainment: float, quality: float) -> str:
    return f"{attainment:.1%}, {quality:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data-dir", type=Path, help="Folder with traces/.")
    parser.add_argument("--profile", type=Path, help="Serving profile.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving_simulation")
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--objectives", type=float, nargs="+", default=[100.0], help="Latency objectives (ms).")
    parser.add_argument("--mean-length", type=float, default=32.0, help="Of requests (tokens).")
    parser.add_argument("--deadlines", action="store_true", help="Drop what has waited for longer than the objective.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if args.command == "run" and (args.data_dir is None or args.profile is None):
        parser.error("run needs --data-dir and --profile")
    {"run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
