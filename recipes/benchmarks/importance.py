"""What a cut costs before any training, by the ranking that decides what is cut.

    python recipes/benchmarks/importance.py run --data-dir DATA_DIR
    python recipes/benchmarks/importance.py table --output recipes/benchmarks/results/importance    prints what is recorded

DATA_DIR has glue/sst2 and wikitext2. Four models: all-MiniLM-L6-v2 as it is (mean cosine to the embeddings of the full model),
MiniLM fine-tuned for a moment (accuracy), and, trained from new weights (loss, nats per token), a small Llama with grouped
queries and a small GPT-2; two tasks each, the last has one. Half of the neurons, of the heads, of the layers, or a quarter of
the channels goes. A seed draws the texts that rank, and the random ranking. Every case writes a record, so that an interrupted
run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
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
CHANNELS = "3/4 of the channels"
CUTS = {
    "half the FFN": ("intermediate_size", 0.5),
    "half the heads": ("num_attention_heads", 0.5),
    CHANNELS: ("hidden_size", 0.75),
}
RANKINGS = {
    "none": {"importance": "none"},
    "random": {"importance": "none"},
    "magnitude": {"importance": "magnitude"},
    "activation, the task's texts": {"importance": "activation", "calibration": "texts"},
    "activation, embedded texts": {"importance": "activation", "calibration": "embedded"},
    "taylor, the task's labels": {"importance": "taylor", "calibration": "labels"},
}
DEPTHS = {
    "first": {},
    "random": {},
    "ends": {"layer_order": "ends"},
    "influence, the task's texts": {"layer_order": "influence", "calibration": "texts"},
    "influence, embedded texts": {"layer_order": "influence", "calibration": "embedded"},
}


def sizes_of(layout) -> dict[str, dict]:
    """The cuts, one axis each."""
    return {cut: {axis: int(layout.value(axis) * share)} for cut, (axis, share) in CUTS.items()}


def shuffle(model, seed: int) -> None:
    """Reorder an elastic model at random, on the axes that a ranking reorders."""
    generator = np.random.default_rng(seed)
    order = importance_order(model)
    for key, indices in order.items():
        groups = model.layout.full["kv"] if key[0] == QUERIES else 1
        rows = np.arange(len(indices)).reshape(groups, -1)
        order[key] = generator.permuted(rows, axis=1).ravel()
    apply_order(model, order)


class Bench:
    """The rankings of one case.

    Args:
        case: the model and the task.
    """

    def __init__(self, case: Case):
        self.case, self.stock = case, case.stock.eval()
        whole = self.convert({}, None, {})
        self.quality = case.quality(whole.base)
        self.layout = whole.layout
        self.found: dict = {"full": self.quality(whole.base)}
        self.embedded = calibration_batches(case.tokenizer, max_length=case.max_length)

    def convert(self, options: dict, space: dict | None, batches: dict):
        """The model, elastic and ranked."""
        given = {"importance": "none", **options}
        if "calibration" in options:
            given["calibration"] = batches[options["calibration"]]
        return self.case.elastic_class.from_base(copy.deepcopy(self.stock), space, **given)

    def add(self, cut: str, ranking: str, model, size: dict) -> None:
        """Measure a size."""
        self.found.setdefault(cut, {}).setdefault(ranking, []).append(self.quality(model.view(size)))

    def run(self, seed: int) -> None:
        """Measure every ranking that the seed changes; with the first one all."""
        case = self.case
        batches = {
            "texts": calibration_batches(case.tokenizer, case.texts(CALIBRATION, seed), max_length=case.max_length),
            "embedded": self.embedded,
            "labels": case.labelled(CALIBRATION, seed),
        }
        sizes = sizes_of(self.layout)
        space = {axis: [value, self.layout.value(axis)] for size in sizes.values() for axis, value in size.items()}
        for name, options in RANKINGS.items():
            if (seed and not is_drawn(name)) or not batches.get(options.get("calibration"), True):
                continue
            model = self.convert(options, space, batches)
            if name == "random":
                shuffle(model, seed)
            for cut, size in sizes.items():
                if cut != CHANNELS or case.has_head:  # else they are what is returned, and keep their order
                    self.add(cut, name, model, size)
        layers = self.layout.num_layers
        for name, options in DEPTHS.items():
            if seed and not is_drawn(name):
                continue
            drawn = {"layer_order": np.random.default_rng(seed).permutation(layers).tolist()}
            model = self.convert(drawn if name == "random" else options, {"num_hidden_layers": [layers // 2, layers]}, batches)
            self.add("half the layers", name, model, {"num_hidden_layers": layers // 2})


def is_drawn(ranking: str) -> bool:
    """Whether a ranking depends on the seed."""
    return ranking == "random" or "the task's" in ranking


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for name in cases():
        record = folder / f"{name}.json"
        if record.exists():
            continue
        started = time.process_time()
        bench = Bench(case_of(name, folder, args.data_dir))
        for seed in range(args.seeds):
            bench.run(seed)
        result = {"case": name, "unit": bench.case.unit, "seconds": time.process_time() - started, **bench.found}
        write_atomically(record, json.dumps(result, indent=2) + "\n")
        print(f"{record}: {result['seconds']:.0f} s of one core", flush=True)


def table(folder: Path) -> None:
    """Print what is recorded: mean, and sample deviation over seeds where there are several.

    Raises:
        ValueError: nothing is recorded.
    """
    records = [json.loads(path.read_text()) for name in cases() if (path := folder / f"{name}.json").exists()]
    if not records:
        raise ValueError(f"output: {folder} has no records")
    console = Console(width=150)
    heads = [f"{record['case']}, {record['unit']}" for record in records]
    for cut in (*CUTS, "half the layers"):
        grid = Table(cut, *heads)
        grid.add_row("(full)", *(f"{record['full']:.3f}" for record in records))
        for ranking in dict.fromkeys(key for record in records for key in record.get(cut, ())):
            grid.add_row(ranking, *(cell(record.get(cut, {}).get(ranking, [])) for record in records))
        console.print(grid)
    console.print(f"seconds of one core: {sum(record['seconds'] for record in records):.0f}")


def cell(values: list[float]) -> str:
    """`mean ± deviation`, or a dash."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> int:
    """Parse and run; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data-dir", help="folder that holds glue/sst2 and wikitext2; to run")
    parser.add_argument("--output", default="runs/importance", help="folder for models and records, one for each case")
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
