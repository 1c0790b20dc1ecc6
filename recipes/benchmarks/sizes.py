"""Every size of one elastic model against the same sizes trained on their own.

    python recipes/benchmarks/sizes.py run sst2 --data-dir DATA_DIR      trains what is missing, then prints the tables
    python recipes/benchmarks/sizes.py run sst2 --data-dir DATA_DIR --part ablation
    python recipes/benchmarks/sizes.py table sst2 --data-dir DATA_DIR    prints what there is

A *run* is one training with one seed: `elastic`, or a size `plain/NAME` (cut out and trained alone) or `distilled/NAME` (cut out
and distilled alone from the trained `plain/largest`). All start from the same importance-ordered checkpoint of the task's recipe
(recipes/minilm/TASK, recipes/gpt2/wikitext2), see the same rows and make the same number of updates. Every number is of a stock
model: elastic sizes are extracted. Each run writes a JSON file, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hf_elastic.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {task: ROOT / "minilm" / task for task in ("sst2", "mrpc", "qnli", "cola")} | {"wikitext2": ROOT / "gpt2/wikitext2"}
METRIC = {"cola": "matthews_correlation", "wikitext2": "perplexity"}
CLASSIFICATION = ("accuracy", "f1", "matthews_correlation")
# What each variant of the elastic training changes in the recipe.
VARIANTS = {
    "elastic": {},
    "no distillation": {"distillation": {}, "task_weight": 1.0},
    "logits": {"distillation": {"logits": 0.5}},
    "logits + hidden": {"distillation": {"logits": 0.5, "hidden": 0.5}},
    "logits + relation": {"distillation": {"logits": 0.5, "relation": 0.5}},
    "logits + hidden + relation": {"distillation": {"logits": 0.5, "hidden": 0.5, "relation": 0.5}},
    "logits + pkd": {"distillation": {"logits": 0.5, "pkd": 0.5}},
    "dist": {"distillation": {"dist": 0.5}},
    "all": {"sampling": "all"},
    "single path": {"sampling": "single_path"},
    "pcgrad": {"gradient_surgery": "pcgrad"},
}
ABLATION = [name for name in VARIANTS if name != "elastic"]


def recipe(task: str) -> tuple[dict, dict]:
    """The convert and the train recipe of a task."""
    return tuple(yaml.safe_load((RECIPES[task] / f"{name}.yaml").read_text()) for name in ("convert", "train"))


def supernet(task: str, seed: int, data_dir: str):
    """The recipe's elastic model, its new weights drawn with the seed, and its tokenizer."""
    from hf_elastic.cli import convert
    from hf_elastic.cli.data import load_elastic, load_tokenizer
    from hf_elastic.data.minilm import minilm_path

    options = dict(recipe(task)[0])
    if "model" in options:
        options["model"] = str(minilm_path())
    else:
        options["tokenizer_dataset"] = str(Path(data_dir) / options["tokenizer_dataset"])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        convert.run(convert.ConvertArguments(**{**options, "seed": seed, "output_dir": folder, "overwrite": True}))
        return load_elastic(folder), load_tokenizer(folder)


def data_of(task: str, data_dir: str, model, tokenizer):
    """The tokenized task, as `hf-elastic train` prepares it."""
    from hf_elastic.cli.data import DataArguments, prepare_for

    train = recipe(task)[1]
    known = {field.name for field in dataclasses.fields(DataArguments)}
    args = DataArguments(**{**{key: value for key, value in train.items() if key in known}, "data_dir": data_dir})
    return prepare_for(model, tokenizer, args)


def arguments(kind: type, task: str, seed: int, output_dir: str, changes: dict):
    """Training arguments of the recipe, for a plain or an elastic Trainer."""
    _, train = recipe(task)
    known = {field.name for field in dataclasses.fields(kind)}
    options = {key: value for key, value in {**train, **changes}.items() if key in known}
    if METRIC.get(task) != "perplexity":
        options["train_sampling_strategy"] = "group_by_length"  # padding is half of the work otherwise
    fixed = {
        "output_dir": output_dir,
        "seed": seed,
        "save_strategy": "no",
        "report_to": ["none"],
        "logging_steps": 100,
        "disable_tqdm": True,
    }
    return kind(**{**options, **fixed})


def train_run(task: str, name: str, seed: int, data_dir: str, output: Path) -> dict:
    """Train one run and measure every size that it gives."""
    from transformers import Trainer, TrainingArguments

    from hf_elastic import ElasticTrainer, ElasticTrainingArguments
    from hf_elastic.metrics import compute_classification

    kind, _, size = name.partition("/")
    model, tokenizer = supernet(task, seed, data_dir)
    data = data_of(task, data_dir, model, tokenizer)
    shared = {"train_dataset": data.splits["train"], "data_collator": data.collator}
    if data.labels:
        shared["compute_metrics"] = compute_classification
    held_out = data.splits["test" if "test" in data.splits else "validation"]
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "plain":
            args = arguments(TrainingArguments, task, seed, scratch, {})
            trainer = Trainer(model=model.extract(size), args=args, **shared)
        else:
            args = arguments(ElasticTrainingArguments, task, seed, scratch, VARIANTS.get(kind, {}))
            teacher = None
            if kind == "distilled":
                model = type(model).from_base(model.extract(size), importance="none")
                teacher = type(model).base_auto_class.from_pretrained(output / task / f"teacher-{seed}")
                args = dataclasses.replace(args, train_subnets=None, eval_subnets=[])
            trainer = ElasticTrainer(model=model, args=args, teacher=teacher, **shared)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        if name == "plain/largest":
            trainer.save_model(output / task / f"teacher-{seed}")
        if kind in ("plain", "distilled"):
            stock = {size: trainer.model if kind == "plain" else trainer.model.extract(None)}
        else:
            stock = {size: model.extract(size) for size in ("largest", *model.config.subnets)}
        plain = arguments(TrainingArguments, task, seed, scratch, {"bf16": False})
        sizes = {}
        for label, one in stock.items():
            metrics = Trainer(model=one.eval(), args=plain, **shared).evaluate(held_out)
            if data.labels:
                sizes[label] = {key: metrics[f"eval_{key}"] for key in CLASSIFICATION}
            else:
                sizes[label] = {"perplexity": math.exp(metrics["eval_loss"])}
    steps = trainer.state.global_step
    return {"task": task, "run": name, "seed": seed, "seconds": seconds, "steps": steps, "rows": len(held_out), "sizes": sizes}


def runs_of(task: str, part: str) -> list[str]:
    """Names of the runs of a part, teachers first."""
    convert, _ = recipe(task)
    sizes = ["largest", *convert["subnets"]]
    if part == "ablation":
        return ABLATION
    kinds = ("plain",) if METRIC.get(task) == "perplexity" else ("plain", "distilled")
    return ["plain/largest", "elastic", *(f"{kind}/{size}" for size in sizes[1:] for kind in kinds)]


def file_of(output: Path, task: str, name: str, seed: int) -> Path:
    """Where a run's result is."""
    return output / task / f"{name.replace('/', '-').replace(' ', '')}-{seed}.json"


def run(args: argparse.Namespace) -> None:
    """Train the missing runs, `workers` at a time, each in a process of its own with `threads` threads."""
    output = Path(args.output)
    names = args.names or runs_of(args.task, args.part)
    waiting = [(n, s) for s in args.seeds for n in names if not file_of(output, args.task, n, s).exists()]
    running: dict = {}
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        bar = progress.add_task(f"{args.task}, {args.part}", total=len(waiting))
        while waiting or running:
            for key in [key for key in waiting if len(running) < args.workers]:
                name, seed = key
                teacher = output / args.task / f"teacher-{seed}" / "config.json"
                if len(running) >= args.workers or (name.startswith("distilled") and not teacher.exists()):
                    continue
                waiting.remove(key)
                log = file_of(output, args.task, name, seed).with_suffix(".log")
                log.parent.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, __file__, "one", args.task, "--data-dir", args.data_dir, "--output", args.output]
                command += ["--names", name, "--seeds", str(seed)]
                environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
                with log.open("w") as file:
                    running[key] = subprocess.Popen(command, env=environment, stdout=file, stderr=file), log
            time.sleep(0.5)
            for key, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[key]
                progress.advance(bar)
                if process.returncode:
                    raise SystemExit(f"{key[0]}, seed {key[1]} failed; see {log}")


def one(args: argparse.Namespace) -> None:
    """Train a single run in this process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for name in args.names:
        for seed in args.seeds:
            result = train_run(args.task, name, seed, args.data_dir, Path(args.output))
            write_atomically(file_of(Path(args.output), args.task, name, seed), json.dumps(result, indent=2) + "\n")


def results(output: Path, task: str, name: str) -> list[dict]:
    """All seeds of a run."""
    pattern = file_of(output, task, name, 0).name.removesuffix("-0.json") + "-?.json"
    return [json.loads(path.read_text()) for path in sorted((output / task).glob(pattern))]


def spread(values: list[float], metric: str) -> str:
    """Mean, and the sample standard deviation where there are several: percent, or perplexity."""
    if not values:
        return "-"
    scaled = np.asarray(values) * (1 if metric == "perplexity" else 100)
    deviation = f" ± {np.std(scaled, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(scaled):.1f}{deviation}"


def table(args: argparse.Namespace) -> None:
    """Print the results that there are."""
    output, metric = Path(args.output), METRIC.get(args.task, "accuracy")
    model, _ = supernet(args.task, 0, args.data_dir)
    names = ["largest", *model.config.subnets]
    full = model.flops_of("largest", sequence_length=32)
    console = Console(width=130)
    columns = {"elastic": "elastic", "plain": "on its own", "distilled": "distilled on its own"}
    grid = Table("size", "FLOPs", "parameters", *columns.values(), title=f"{args.task}: {metric}, mean ± deviation over seeds")
    for size in names:
        cells = []
        for kind in columns:
            found = results(output, args.task, kind if kind == "elastic" else f"{kind}/{size}")
            cells.append(spread([r["sizes"][size][metric] for r in found], metric))
        share = model.flops_of(size, sequence_length=32) / full
        grid.add_row(size, f"{share:.0%}", f"{model.num_parameters_of(size) / 1e6:.1f} M", *cells)
    console.print(grid)
    seconds = {name: [r["seconds"] for r in results(output, args.task, name)] for name in runs_of(args.task, "sizes")}
    times = ", ".join(f"{name} {np.mean(value):.0f}" for name, value in seconds.items() if value)
    console.print(f"seconds of training: {times}")
    grid = Table("variant", *names, "mean of the sizes", "seconds", title=f"{args.task}: what each part adds")
    for name in VARIANTS:
        found = results(output, args.task, name)
        if found:
            cells = [spread([r["sizes"][size][metric] for r in found], metric) for size in names]
            mean = spread([float(np.mean([r["sizes"][size][metric] for size in names])) for r in found], metric)
            grid.add_row(name, *cells, mean, f"{np.mean([r['seconds'] for r in found]):.0f}")
    console.print(grid)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "table"))
    parser.add_argument("task", choices=tuple(RECIPES))
    parser.add_argument("--data-dir", required=True, help="folder that holds glue/TASK and wikitext2")
    parser.add_argument("--output", default="runs/sizes", help="folder for the results")
    parser.add_argument("--part", choices=("sizes", "ablation"), default="sizes")
    parser.add_argument("--names", nargs="+", help="only these runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (processes)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    args = parser.parse_args()
    {"run": run, "one": one, "table": table}[args.command](args)
    if args.command == "run":
        table(args)


if __name__ == "__main__":
    main()
