"""LTS from end to end: search GPT-2s or Transformer-XLs on this machine, and compare them with homogeneous ones.

    python recipes/benchmarks/lts.py gpt2 --output runs/lts-gpt2/report
    python recipes/benchmarks/lts.py transfo_xl --output runs/lts-transfo_xl/report
    python recipes/benchmarks/lts.py transfo_xl --div-val 4 --output runs/lts-transfo_xl-div_val/report

LTS (Javaheripi et al. 2022, arXiv 2203.02094): the number of decoder parameters stands for quality, so nothing is trained; the
costs are latency and peak memory on the device (batch 1, 192 tokens, one thread); 30 rounds of 80 candidates after a first 100.
Ours: a few dozen sizes are measured, the costs of candidates are predicted from them, and what the result is about is measured
at the end, in one interleaved run with homogeneous models of 1 to 16 layers: for eight of these the candidate of the predicted
frontier that should be fastest, and the one that should need the least memory, at no fewer decoder parameters. A call computes
the scores of the whole vocabulary at all positions. LTS's space of Transformer-XLs has the adaptive embedding's div_val 1, 2 and
4 in it: `--div-val` is that of the models searched, while the homogeneous ones keep 1. Decoder parameters do not see what a
larger one costs in quality.

Written into the output folder: record.json (machine, settings, every sample, seconds of each step), profile.json, frontier.json,
report.html, and found/*/config.json, from which `AutoModelForCausalLM.from_config` builds what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from lts_report import compare, frontier_of, print_report

from hf_elastic import ElasticForCausalLM, Subnet
from hf_elastic.cli.common import parse
from hf_elastic.cli.convert import ConvertArguments, ConvertConfig, from_scratch
from hf_elastic.cli.search import SearchArguments
from hf_elastic.export.architecture import save_architecture
from hf_elastic.measure.cost_model import cost_models
from hf_elastic.measure.latency import machine_facts
from hf_elastic.measure.memory import measure_memory
from hf_elastic.measure.profile import measure_profile
from hf_elastic.measure.values import LATENCY, MEMORY
from hf_elastic.measure.workload import use_threads
from hf_elastic.search import search_subnets
from hf_elastic.search.config import DEFAULT_LENGTH, SearchConfig
from hf_elastic.search.frontier import Frontier
from hf_elastic.search.proxies.table import closed_form
from hf_elastic.utils.files import write_atomically
from hf_elastic.utils.folders import check_output, filled

RECIPES = Path(__file__).parents[1] / "lts"
QUALITY = "decoder_parameters"
# Depths of homogeneous models whose decoder parameters are what found ones are picked for; they are compared with all depths.
PICKED = (1, 2, 3, 4, 6, 8, 12, 16)
# The homogeneous models: every layer alike.
BASELINES = {
    "gpt2": {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8},
    "transfo_xl": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
}


WHERE = ("output", "overwrite")  # arguments that no measurement depends on


class Stopwatch:
    """Seconds of each step, by name, and how much of them this process was computing."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.busy: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens within, and say so when it is done."""
        start, busy = time.perf_counter(), sum(os.times()[:4])
        yield
        self.seconds[name], self.busy[name] = time.perf_counter() - start, sum(os.times()[:4]) - busy
        print(f"{name}: {self.seconds[name]:.1f} s, {self.busy[name]:.1f} s of a core", flush=True)


def supernet(recipe: Path, div_val: int | None = None) -> ElasticForCausalLM:
    """What `hf-elastic convert` would write, in memory; `div_val` replaces the recipe's."""
    _, config = parse([ConvertArguments, ConvertConfig], [str(recipe)], "convert")
    if div_val is not None:
        config.model_config = {**config.model_config, "div_val": div_val}
    torch.manual_seed(config.seed)
    return from_scratch(ElasticForCausalLM, config).eval()


def pick(model: ElasticForCausalLM, frontier: Frontier, baselines: list[Subnet]) -> list[Subnet]:
    """For each homogeneous model, the points of the predicted frontier that should be fastest, and leanest, at its quality."""
    chosen: dict[Subnet, None] = {}
    for quality in closed_form(model, baselines, [QUALITY])[QUALITY]:
        enough = [point for point in frontier.points if point.values[QUALITY] >= quality]
        for cost in (LATENCY, MEMORY) if enough else ():
            chosen[model.subnet(min(enough, key=lambda point: point.values[cost]).subnet)] = None
    return list(chosen)


def main(argv: list[str] | None = None) -> int:
    """Run it all; 2 and one line for arguments that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=BASELINES)
    parser.add_argument("--output", required=True, help="folder for the record, the report and the found configs")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    parser.add_argument("--recipes", type=Path, help="folder of convert.yaml and search.yaml (default recipes/lts/BACKBONE)")
    parser.add_argument("--div-val", type=int, choices=(1, 2, 4), help="of the models searched; transfo_xl only (default 1)")
    parser.add_argument("--baseline", type=json.loads, help="sizes of the homogeneous models, JSON (default: see the source)")
    parser.add_argument("--profile-sizes", type=int, default=28, help="sizes measured before the search (default %(default)s)")
    parser.add_argument("--profile-seconds", type=float, default=50, help="most seconds to time them (default %(default)s)")
    parser.add_argument("--compare-seconds", type=float, default=90, help="most seconds to time the result (%(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="most samples of each size (default %(default)s)")
    parser.add_argument("--memory-workers", type=int, default=os.cpu_count(), help="peak memories at a time (default: cores)")
    arguments = parser.parse_args(argv)
    if arguments.div_val is not None and arguments.backbone != "transfo_xl":
        parser.error(f"--div-val: {arguments.backbone} has no adaptive embedding; it is for transfo_xl")
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"lts.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> dict:
    """Search, measure, compare and write; returns the record."""
    check_output(arguments.output, overwrite=arguments.overwrite)
    recipes = arguments.recipes or RECIPES / arguments.backbone
    _, options = parse([SearchArguments, SearchConfig], [str(recipes / "search.yaml")], "search")
    workload = options.workload(DEFAULT_LENGTH)
    watch = Stopwatch()
    with watch.step("convert"):
        model = reference = supernet(recipes / "convert.yaml", arguments.div_val)
        if arguments.div_val not in (None, 1):
            reference = supernet(recipes / "convert.yaml", 1)
    sizes = arguments.baseline or BASELINES[arguments.backbone]
    depths = range(1, model.layout.num_layers + 1)
    baselines = [model.subnet({"num_hidden_layers": depth, **sizes}) for depth in depths]
    timing = {"repeats": arguments.repeats, "min_rounds": 3, "relative_interval": 0.03, "warmup": 1}
    with watch.step("profile"):
        profile = measure_profile(
            model, **asdict(workload), num_subnets=arguments.profile_sizes, memory_workers=arguments.memory_workers,
            budget_seconds=arguments.profile_seconds, **timing,
        )  # fmt: skip
        model.forget_views()
    predictors = {name: str(fitted) for name, fitted in cost_models(model, profile).items()}
    with watch.step("search"):
        predicted = search_subnets(
            model, options.objectives, n_trials=options.n_trials, population_size=options.population_size, seed=options.seed,
            latency_profile=profile, measure_at_most=0, progress=False,
        )  # fmt: skip
    found = pick(model, predicted, [one for one, depth in zip(baselines, depths) if depth in PICKED])
    if reference is model:
        found = [one for one in found if one not in baselines]
    groups = ((reference, baselines), (model, found))
    pairs = [(owner, subnet) for owner, subnets in groups for subnet in subnets]
    with watch.step("latency of the result and of the homogeneous models"):
        latencies = workload.measure_pairs(pairs, budget_seconds=arguments.compare_seconds, **timing)
    memories = []
    with watch.step("peak memory of both"):
        for owner, subnets in groups:
            owner.forget_views()
            memories += measure_memory(owner, subnets, workload, workers=arguments.memory_workers).values()
            owner.forget_views()
    guessed = {model.subnet(point.subnet): point.values for point in predicted.points}
    names = [f"homogeneous-{depth}" for depth in depths] + [f"found-{number}" for number, _ in enumerate(found, start=1)]
    # What a decoder has is the same in both supernets.
    qualities = closed_form(model, [subnet for _, subnet in pairs], [QUALITY])[QUALITY]
    measured = [
        {
            "name": name,
            "subnet": subnet.to_dict(),
            "is_baseline": name.startswith("homogeneous"),
            "portability": owner.portability_of(subnet),
            QUALITY: int(quality),
            "parameters": owner.num_parameters_of(subnet),
            "latency": latency.to_dict(),
            "memory": asdict(memory),
            "predicted": {cost: guessed[subnet][cost] for cost in (LATENCY, MEMORY)} if name.startswith("found") else None,
        }
        for name, (owner, subnet), quality, latency, memory in zip(names, pairs, qualities, latencies, memories)
    ]
    with use_threads(workload.threads):
        machine = machine_facts()
    record = {
        "backbone": arguments.backbone,
        "machine": {**machine, "load_average": os.getloadavg(), "cpus": os.cpu_count()},
        "settings": {
            **{k: str(v) for k, v in vars(arguments).items() if k not in WHERE},
            "target": asdict(workload),
            "n_trials": options.n_trials,
        },
        "space_size": str(model.space.size),
        "seconds": watch.seconds,
        "core_seconds": watch.busy,
        "predictors": predictors,
        "predicted_frontier": len(predicted.points),
        "measured": measured,
        "comparison": compare(measured, QUALITY),
    }
    write(arguments, model, record, profile, frontier_of(measured, options.objectives))
    print_report(record)
    return record


def write(arguments: argparse.Namespace, model: ElasticForCausalLM, record: dict, profile, frontier: Frontier) -> None:
    """Everything, or nothing."""
    with filled(arguments.output, overwrite=arguments.overwrite) as staging:
        write_atomically(staging / "record.json", json.dumps(record, indent=1) + "\n")
        profile.save(staging / "profile.json")
        frontier.save(staging / "frontier.json")
        frontier.report(staging / "report.html", f"LTS, {record['backbone']}: found and homogeneous models")
        for one in record["measured"]:
            if not one["is_baseline"]:
                save_architecture(model, Subnet(one["subnet"]), staging / "found" / one["name"])


if __name__ == "__main__":
    sys.exit(main())
