"""Every size of one elastic MiniLM on GLUE, against the same sizes trained on their own.

    python recipes/benchmarks/glue.py run sst2 --data-dir DATA_DIR      trains what is missing, then prints the table
    python recipes/benchmarks/glue.py run sst2 --data-dir DATA_DIR --part ablation
    python recipes/benchmarks/glue.py table sst2                         prints what there is

A *run* is one training with one seed: `elastic`, or a size `plain/NAME` (cut out and fine-tuned alone) or `distilled/NAME` (cut
out and distilled alone from `plain/largest`). All start from the same importance-ordered checkpoint, with the recipe
recipes/minilm/TASK, see the same rows and make the same number of updates. Every accuracy is of a stock model: elastic sizes are
extracted. Each run writes a JSON file, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
TASKS = ("sst2", "mrpc", "qnli", "cola")
METRIC = {"cola": "matthews_correlation"}
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
    folder = ROOT / "minilm" / task
    return tuple(yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("convert", "train"))


def supernet(task: str, seed: int):
    """MiniLM made elastic, its classifier drawn with the seed."""
    from hf_elastic import ElasticForSequenceClassification
    from hf_elastic.data.minilm import minilm_path

    convert, _ = recipe(task)
    torch.manual_seed(seed)
    return ElasticForSequenceClassification.from_base(
        str(minilm_path()),
        num_labels=convert["num_labels"],
        space=convert["space"],
        subnets=convert["subnets"],
        dtype=torch.float32,
    )


def data_of(task: str, data_dir: str, model):
    """The tokenized task, as `hf-elastic train` prepares it."""
    from transformers import AutoTokenizer

    from hf_elastic.cli.data import DataArguments, prepare_for
    from hf_elastic.data.minilm import minilm_path

    _, train = recipe(task)
    known = {field.name for field in dataclasses.fields(DataArguments)}
    args = DataArguments(**{**{key: value for key, value in train.items() if key in known}, "data_dir": data_dir})
    tokenizer = AutoTokenizer.from_pretrained(str(minilm_path()))
    return prepare_for(model, tokenizer, args)


def arguments(kind: type, task: str, seed: int, output_dir: str, changes: dict):
    """Training arguments of the recipe, for a plain or an elastic Trainer."""
    _, train = recipe(task)
    known = {field.name for field in dataclasses.fields(kind)}
    options = {key: value for key, value in {**train, **changes}.items() if key in known}
    fixed = {
        "output_dir": output_dir,
        "seed": seed,
        "save_strategy": "no",
        "report_to": ["none"],
        "logging_steps": 100,
        "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length",  # padding is half of the work otherwise
    }
    return kind(**{**options, **fixed})


def train_run(task: str, name: str, seed: int, data_dir: str, output: Path) -> dict:
    """Train one run and measure every size that it gives."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    from hf_elastic import ElasticForSequenceClassification, ElasticTrainer, ElasticTrainingArguments
    from hf_elastic.metrics import compute_classification

    kind, _, size = name.partition("/")
    model = supernet(task, seed)
    data = data_of(task, data_dir, model)
    shared = {"train_dataset": data.splits["train"], "data_collator": data.collator, "compute_metrics": compute_classification}
    held_out = data.splits["test" if "test" in data.splits else "validation"]
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "plain":
            args = arguments(TrainingArguments, task, seed, scratch, {})
            trainer = Trainer(model=model.extract(size), args=args, **shared)
        else:
            changes = VARIANTS.get(kind, {})
            args = arguments(ElasticTrainingArguments, task, seed, scratch, changes)
            teacher = None
            if kind == "distilled":
                model = ElasticForSequenceClassification.from_base(model.extract(size), importance="none")
                teacher = AutoModelForSequenceClassification.from_pretrained(output / task / f"teacher-{seed}")
                args = dataclasses.replace(args, train_subnets=None, eval_subnets=[])
            trainer = ElasticTrainer(model=model, args=args, teacher=teacher, **shared)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        if name == "plain/largest":
            trainer.save_model(output / task / f"teacher-{seed}")
        sizes = {}
        if kind in ("plain", "distilled"):
            stock = {size: trainer.model if kind == "plain" else trainer.model.extract(None)}
        else:
            stock = {size: model.extract(size) for size in ("largest", *model.config.subnets)}
        plain = arguments(TrainingArguments, task, seed, scratch, {"bf16": False})
        for label, one in stock.items():
            metrics = Trainer(model=one.eval(), args=plain, **shared).evaluate(held_out)
            wanted = ("accuracy", "f1", "matthews_correlation")
            sizes[label] = {key: metrics[f"eval_{key}"] for key in wanted}
    steps = trainer.state.global_step
    return {"task": task, "run": name, "seed": seed, "seconds": seconds, "steps": steps, "rows": len(held_out), "sizes": sizes}


def runs_of(task: str, part: str) -> list[str]:
    """Names of the runs of a part, teachers first."""
    convert, _ = recipe(task)
    sizes = ["largest", *convert["subnets"]]
    if part == "ablation":
        return ABLATION
    return ["plain/largest", "elastic", *(f"{kind}/{size}" for size in sizes[1:] for kind in ("plain", "distilled"))]


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


def spread(values: list[float]) -> str:
    """Mean, and the sample standard deviation where there are several."""
    if not values:
        return "-"
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def table(args: argparse.Namespace) -> None:
    """Print the results that there are."""
    output, metric = Path(args.output), METRIC.get(args.task, "accuracy")
    model = supernet(args.task, 0)
    names = ["largest", *model.config.subnets]
    full = model.flops_of("largest", sequence_length=32)
    console = Console(width=130)
    values = {
        (kind, size): [
            r["sizes"][size][metric] for r in results(output, args.task, kind if kind == "elastic" else f"{kind}/{size}")
        ]
        for kind in ("elastic", "plain", "distilled")
        for size in names
    }
    grid = Table("size", "FLOPs", "parameters", "elastic", "truncated, fine-tuned", "truncated, distilled", title=args.task)
    for size in names:
        share = model.flops_of(size, sequence_length=32) / full
        cells = [spread(values[kind, size]) for kind in ("elastic", "plain", "distilled")]
        grid.add_row(size, f"{share:.0%}", f"{model.num_parameters_of(size) / 1e6:.1f} M", *cells)
    console.print(grid)
    seconds = {name: [r["seconds"] for r in results(output, args.task, name)] for name in runs_of(args.task, "sizes")}
    times = ", ".join(f"{name} {np.mean(value):.0f}" for name, value in seconds.items() if value)
    console.print(f"seconds of training: {times}")
    grid = Table("variant", *names, "mean of the sizes", "seconds", title=f"{args.task}: what each part adds")
    for name in VARIANTS:
        found = results(output, args.task, name)
        if found:
            cells = [spread([r["sizes"][size][metric] for r in found]) for size in names]
            mean = spread([float(np.mean([r["sizes"][size][metric] for size in names])) for r in found])
            grid.add_row(name, *cells, mean, f"{np.mean([r['seconds'] for r in found]):.0f}")
    console.print(grid)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "table"))
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data-dir", help="folder that holds glue/TASK")
    parser.add_argument("--output", default="runs/glue", help="folder for the results")
    parser.add_argument("--part", choices=("sizes", "ablation"), default="sizes")
    parser.add_argument("--names", nargs="+", help="only these runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (processes)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    args = parser.parse_args()
    if args.command != "table" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds glue/TASK")
    {"run": run, "one": one, "table": table}[args.command](args)
    if args.command == "run":
        table(args)


if __name__ == "__main__":
    main()
