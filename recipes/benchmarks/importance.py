"""What a cut costs before any training, by the ranking that decides what is cut.

    python recipes/benchmarks/importance.py run --data-dir DATA_DIR
    python recipes/benchmarks/importance.py table --output recipes/benchmarks/results/importance    prints what is recorded

DATA_DIR has glue/sst2 and wikitext2. Three models: all-MiniLM-L6-v2 as it is (mean cosine to the embeddings of the full model), MiniLM
fine-tuned for a moment (accuracy), and a small Llama with grouped queries, trained from new weights (loss, nats per token);
two tasks each. Half of the neurons, of the heads, of the layers, or a quarter of the hidden channels goes. A seed draws new weights, the
order of rows, the texts that rank, and the random ranking. Every case writes a record, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from importance_models import Case, case_of, cases
from rich.console import Console
from rich.table import Table

from hf_elastic.core.importance import QUERIES, apply_order, importance_order
from hf_elastic.data.calibration import calibration_batches
from hf_elastic.utils.files import write_atomically

CALIBRATION = 256  # texts
RANKINGS = {
    "none": {"importance": "none"},
    "random": {"importance": "none"},
    "magnitude": {"importance": "magnitude"},
    "activation, the task's texts": {"importance": "activation", "calibration": "texts"},
    "activation, docstrings": {"importance": "activation", "calibration": "docstrings"},
    "taylor, the task's labels": {"importance": "taylor", "calibration": "labels"},
}
DEPTHS = {
    "first": {},
    "random": {},
    "ends": {"layer_order": "ends"},
    "influence, the task's texts": {"layer_order": "influence", "calibration": "texts"},
    "influence, docstrings": {"layer_order": "influence", "calibration": "docstrings"},
}


def sizes_of(layout) -> dict[str, dict]:
    """The cuts, one axis each."""
    return {
        "half the FFN": {"intermediate_size": layout.value("intermediate_size") // 2},
        "half the heads": {"num_attention_heads": layout.value("num_attention_heads") // 2},
        "3/4 of the channels": {"hidden_size": layout.value("hidden_size") * 3 // 4},
    }


def shuffle(model, seed: int) -> None:
    """Reorder an elastic model at random, on the axes that a ranking reorders."""
    generator = np.random.default_rng(seed)
    order = importance_order(model)
    for key, indices in order.items():
        groups = model.layout.full["kv"] if key[0] == QUERIES else 1
        rows = np.arange(len(indices)).reshape(groups, -1)
        order[key] = generator.permuted(rows, axis=1).ravel()
    apply_order(model, order)


def measure(case: Case, seed: int) -> dict:
    """Every ranking of a case.

    Returns:
        "full", and for each cut the quality by ranking.
    """
    stock = case.stock.eval()
    batches = {
        "texts": calibration_batches(case.tokenizer, case.texts(CALIBRATION, seed), max_length=case.max_length),
        "docstrings": calibration_batches(case.tokenizer, max_length=case.max_length),
        "labels": case.labelled(CALIBRATION, seed),
    }

    def convert(options: dict, space: dict):
        name = options.get("calibration")
        if name is not None and not batches[name]:
            return None
        given = {**options, "calibration": batches[name]} if name else options
        return case.elastic_class.from_base(copy.deepcopy(stock), space, **{"importance": "none", **given})

    full = convert({}, None)
    quality: Callable = case.quality(full.base)
    sizes = sizes_of(full.layout)
    space = {axis: [value, full.layout.value(axis)] for size in sizes.values() for axis, value in size.items()}
    found: dict = {"full": quality(full.base), **{cut: {} for cut in sizes}, "half the layers": {}}
    for name, options in RANKINGS.items():
        model = convert(options, space)
        if model is None:
            continue
        if name == "random":
            shuffle(model, seed)
        for cut, size in sizes.items():
            if cut != "3/4 of the channels" or case.has_head:  # else they are what is returned, and keep their order
                found[cut][name] = quality(model.view(size))
    layers = full.layout.num_layers
    for name, options in DEPTHS.items():
        order = {"layer_order": np.random.default_rng(seed).permutation(layers).tolist()} if name == "random" else options
        model = convert(order, {"num_hidden_layers": [layers // 2, layers]})
        found["half the layers"][name] = quality(model.view({"num_hidden_layers": layers // 2}))
    return found


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for name in cases():
        for seed in range(args.seeds):
            record = folder / f"{name}-{seed}.json"
            if record.exists():
                continue
            started = time.process_time()
            case = case_of(name, seed, folder, args.data_dir)
            result = {"case": name, "unit": case.unit, "seed": seed, **measure(case, seed)}
            result["seconds"] = time.process_time() - started
            write_atomically(record, json.dumps(result, indent=2) + "\n")
            print(f"{record}: {result['seconds']:.0f} s of one core")


def table(folder: Path) -> None:
    """Print what is recorded: mean and sample deviation over seeds."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*-[0-9].json"))]
    if not records:
        raise ValueError(f"output: {folder} has no records")
    names = [name for name in cases() if any(record["case"] == name for record in records)]
    by_case = {name: [record for record in records if record["case"] == name] for name in names}
    console = Console(width=170)
    for cut in ("full", "half the FFN", "half the heads", "3/4 of the channels", "half the layers"):
        grid = Table("ranking", *(f"{name}, {by_case[name][0]['unit']}" for name in names), title=cut, title_justify="left")
        for ranking in [""] if cut == "full" else dict.fromkeys(key for record in records for key in record[cut]):
            cells = [[row[cut] if cut == "full" else row[cut].get(ranking) for row in by_case[name]] for name in names]
            grid.add_row(ranking, *map(cell, cells))
        console.print(grid)
    console.print(f"seconds of one core, training included: {sum(record['seconds'] for record in records):.0f}")


def cell(values: list) -> str:
    """`mean ± deviation`, or a dash."""
    if None in values:
        return "-"
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> int:
    """Parse and run; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data-dir", help="folder that holds glue/sst2 and wikitext2; to run")
    parser.add_argument("--output", default="runs/importance", help="folder for models and records")
    parser.add_argument("--seeds", type=int, default=3, help="how many (count)")
    args = parser.parse_args()
    if args.command == "run" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds glue/sst2 and wikitext2")
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}; at least 1 is needed")
    folder = Path(args.output)
    try:
        if args.command == "run":
            folder.mkdir(parents=True, exist_ok=True)
            run(args, folder)
        table(folder)
    except (FileNotFoundError, ValueError) as error:
        print(f"importance.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
