"""Every size of one elastic model against the same sizes trained on their own.

    python recipes/benchmarks/sizes.py run sst2 --data-dir DATA_DIR      trains what is missing, then prints the tables
    python recipes/benchmarks/sizes.py run sst2 --data-dir DATA_DIR --part ablation
    python recipes/benchmarks/sizes.py table sst2 --output recipes/benchmarks/results    prints what is recorded

A *run* is one training with one seed. For GLUE, `finetuned` comes first: MiniLM fine-tuned as a whole, which is then ranked and
converted, and which teaches. Every other run starts from that same converted checkpoint (wikitext2: from the same new weights),
sees the same rows and makes the same number of updates: `elastic` and its variants, `plain/SIZE` (cut out and trained alone) and
`distilled/SIZE` (cut out and distilled alone). The settings are those of the task's recipe (recipes/minilm/TASK,
recipes/gpt2/wikitext2). Every number is of a model of its own: elastic sizes are extracted. Each run writes a JSON file, so that
an interrupted benchmark goes on where it was; those of the README are in recipes/benchmarks/results.
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

from hf_elastic.data.task import TASKS
from hf_elastic.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {task: ROOT / "minilm" / task for task in ("sst2", "mrpc", "qnli", "cola")} | {"wikitext2": ROOT / "gpt2/wikitext2"}
METRIC = {"cola": "matthews_correlation", "wikitext2": "perplexity"}
CLASSIFICATION = ("accuracy", "f1", "matthews_correlation")
# What each variant of the elastic training changes in the recipe.
VARIANTS = {
    "elastic": {},
    "largest teaches": {"teacher": None},
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


def recipe(task: str, stage: str) -> dict:
    """A recipe of a task."""
    return yaml.safe_load((RECIPES[task] / f"{stage}.yaml").read_text())


class Runs:
    """Where the runs of a task are, and what they are made of.

    Args:
        task: one of `RECIPES`.
        data_dir: folder that holds glue/TASK and wikitext2.
        output: folder for the results.
    """

    def __init__(self, task: str, data_dir: str, output: str):
        self.task = task
        self.data_dir = data_dir
        self.folder = Path(output) / task
        self.is_language_model = METRIC.get(task) == "perplexity"
        self.convert = recipe(task, "convert")

    def result(self, name: str, seed: int) -> Path:
        """Where the result of a run is."""
        return self.folder / f"{name.replace('/', '-').replace(' ', '')}-{seed}.json"

    def results(self, name: str) -> list[dict]:
        """All seeds of a run."""
        pattern = self.result(name, 0).name.removesuffix("-0.json") + "-[0-9].json"
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(pattern))]

    def finetuned(self, seed: int) -> Path:
        """The fine-tuned full model of a seed."""
        return self.folder / f"finetuned-{seed}"

    def supernet(self, seed: int):
        """The recipe's elastic model, new weights drawn with the seed, and its tokenizer."""
        from hf_elastic.cli import convert
        from hf_elastic.cli.data import load_elastic, load_tokenizer

        options = {**self.convert, "data_dir": self.data_dir, "seed": seed, "overwrite": True}
        if "model" in options:
            options["model"] = str(self.finetuned(seed))
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            convert.run(convert.ConvertArguments(**{**options, "output_dir": folder}))
            return load_elastic(folder), load_tokenizer(folder)

    def pretrained(self, seed: int):
        """MiniLM with a new head, as an elastic model of one size, and its tokenizer."""
        from hf_elastic.cli.data import load_tokenizer
        from hf_elastic.cli.train import TrainArguments, load_stock
        from hf_elastic.data.minilm import minilm_path

        torch.manual_seed(seed)
        options = known_to(TrainArguments, recipe(self.task, "finetune"))
        return load_stock(TrainArguments(**{**options, "model": str(minilm_path())})), load_tokenizer(str(minilm_path()))

    def data(self, model, tokenizer):
        """The tokenized task, as `hf-elastic train` prepares it."""
        from hf_elastic.cli.data import DataArguments, prepare_for

        options = known_to(DataArguments, recipe(self.task, "train"))
        return prepare_for(model, tokenizer, DataArguments(**{**options, "data_dir": self.data_dir}))

    def arguments(self, kind: type, stage: str, seed: int, output_dir: str, changes: dict):
        """Training arguments of a recipe, for a plain or an elastic Trainer."""
        options = known_to(kind, {**recipe(self.task, stage), **changes})
        if not self.is_language_model:
            options["train_sampling_strategy"] = "group_by_length"  # padding is half of the work otherwise
        fixed = {"output_dir": output_dir, "seed": seed, "report_to": ["none"], "logging_steps": 100, "disable_tqdm": True}
        return kind(**{**options, **fixed, "save_strategy": "no"})


def known_to(kind: type, options: dict) -> dict:
    """The options that a dataclass has."""
    known = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in options.items() if key in known}


def train_run(runs: Runs, name: str, seed: int) -> dict:
    """Train one run and measure every size that it gives."""
    from transformers import Trainer, TrainingArguments

    from hf_elastic import ElasticTrainer, ElasticTrainingArguments
    from hf_elastic.export.checkpoint import save_standard
    from hf_elastic.metrics import compute_classification

    kind, _, size = name.partition("/")
    model, tokenizer = runs.pretrained(seed) if kind == "finetuned" else runs.supernet(seed)
    data = runs.data(model, tokenizer)
    shared = {"train_dataset": data.splits["train"], "data_collator": data.collator}
    if data.labels:
        shared["compute_metrics"] = compute_classification
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "plain" or kind == "finetuned":
            stage = "finetune" if kind == "finetuned" else "train"
            args = runs.arguments(TrainingArguments, stage, seed, scratch, {})
            trainer = Trainer(model=plain_model(model, size or None), args=args, **shared)
        else:
            changes = VARIANTS.get(kind, {})
            args = runs.arguments(ElasticTrainingArguments, "train", seed, scratch, changes)
            taught = kind == "distilled" or {**recipe(runs.task, "train"), **changes}.get("teacher")
            teacher = type(model).base_auto_class.from_pretrained(runs.finetuned(seed)) if taught else None
            if kind == "distilled":
                model = type(model).from_base(plain_model(model, size), importance="none")
                args = dataclasses.replace(args, train_subnets=None, eval_subnets=[])
            trainer = ElasticTrainer(model=model, args=args, teacher=teacher, **shared)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        if kind == "finetuned":
            save_standard(trainer.model, runs.finetuned(seed), tokenizer)
        if kind == "elastic":
            model.save_pretrained(runs.folder / f"elastic-{seed}")
            tokenizer.save_pretrained(runs.folder / f"elastic-{seed}")
        if size or kind == "finetuned":
            trained = {size or "largest": trainer.model.base if kind == "distilled" else trainer.model}
        else:
            trained = {label: model.extract(label) for label in ("largest", *model.config.subnets)}
        held_out = data.splits["test" if "test" in data.splits else "validation"]
        plain = runs.arguments(TrainingArguments, "train", seed, scratch, {"bf16": False})
        sizes = {}
        for label, one in trained.items():
            metrics = Trainer(model=one.eval(), args=plain, **shared).evaluate(held_out)
            if data.labels:
                sizes[label] = {key: metrics[f"eval_{key}"] for key in CLASSIFICATION}
            else:
                sizes[label] = {"perplexity": math.exp(metrics["eval_loss"])}
    found = {"run": name, "seed": seed, "seconds": seconds, "steps": trainer.state.global_step, "rows": len(held_out)}
    return {"task": runs.task, **found, "sizes": sizes}


def plain_model(model, size: str | None):
    """A size as a model of its own, which plain Trainer trains: the stock class, or the tree that an elastic size is."""
    from hf_elastic.modeling_elastic import ElasticPreTrainedModel

    extracted = model.extract(size)
    return extracted.base if isinstance(extracted, ElasticPreTrainedModel) else extracted


def names_of(runs: Runs, part: str) -> list[str]:
    """Names of the runs of a part, in the order to train them."""
    first = [] if runs.is_language_model else ["finetuned"]
    if part == "ablation":
        return [*first, *(name for name in VARIANTS if name != "elastic")]
    kinds = ("plain",) if runs.is_language_model else ("plain", "distilled")
    sizes = [f"{kind}/{size}" for size in runs.convert["subnets"] for kind in kinds]
    return [*first, "elastic", "plain/largest", *sizes]


def run(args: argparse.Namespace) -> None:
    """Train the missing runs, `workers` at a time, each in a process of its own with `threads` threads."""
    runs = Runs(args.task, args.data_dir, args.output)
    names = args.names or names_of(runs, args.part)
    waiting = [(name, seed) for seed in args.seeds for name in names if not runs.result(name, seed).exists()]
    running: dict = {}
    runs.folder.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{args.task}, {args.part}", total=len(waiting))
        while waiting or running:
            for name, seed in list(waiting):
                needs = "model" in runs.convert and name != "finetuned"
                if len(running) == args.workers or (needs and not runs.result("finetuned", seed).exists()):
                    continue
                waiting.remove((name, seed))
                command = [sys.executable, __file__, "one", args.task, "--data-dir", args.data_dir, "--output", args.output]
                log = runs.result(name, seed).with_suffix(".log")
                with log.open("w") as file:
                    running[name, seed] = subprocess.Popen(
                        [*command, "--names", name, "--seeds", str(seed)],
                        env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
                        stdout=file,
                        stderr=file,
                    )
            time.sleep(0.5)
            for (name, seed), process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name, seed]
                progress.advance(bar)
                if process.returncode:
                    raise SystemExit(f"{name}, seed {seed} failed; see {runs.result(name, seed).with_suffix('.log')}")


def one(args: argparse.Namespace) -> None:
    """Train a single run in this process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    runs = Runs(args.task, args.data_dir, args.output)
    for name in args.names:
        for seed in args.seeds:
            write_atomically(runs.result(name, seed), json.dumps(train_run(runs, name, seed), indent=2) + "\n")


def spread(values: list[float], metric: str) -> str:
    """Mean, and the sample standard deviation where there are several: percent, or perplexity."""
    if not values:
        return "-"
    scaled = np.asarray(values) * (1 if metric == "perplexity" else 100)
    deviation = f" ± {np.std(scaled, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(scaled):.1f}{deviation}"


def table(args: argparse.Namespace) -> None:
    """Print the results that there are."""
    runs = Runs(args.task, args.data_dir, args.output)
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
    found = [r["sizes"]["largest"][metric] for r in runs.results("finetuned")]
    console.print(f"the fine-tuned model that all start from: {spread(found, metric)}")
    seconds = {name: [r["seconds"] for r in runs.results(name)] for name in names_of(runs, "sizes")}
    times = ", ".join(f"{name} {np.mean(value):.0f}" for name, value in seconds.items() if value)
    console.print(f"seconds of training: {times}")
    grid = Table("variant", *names, "mean of the sizes", "seconds", title=f"{args.task}: what each part adds")
    for name in VARIANTS:
        found = runs.results(name)
        if found:
            cells = [spread([r["sizes"][size][metric] for r in found], metric) for size in names]
            mean = spread([float(np.mean([r["sizes"][size][metric] for size in names])) for r in found], metric)
            grid.add_row(name, *cells, mean, f"{np.mean([r['seconds'] for r in found]):.0f}")
    console.print(grid)


def cost_shares(runs: Runs, names: list[str]) -> dict[str, tuple[str, str]]:
    """FLOPs relative to the largest, and parameters, of each size; counted, so any weights will do."""
    import hf_elastic
    from hf_elastic.cli.convert import ConvertArguments, from_scratch
    from hf_elastic.data.minilm import minilm_path

    options = {key: runs.convert[key] for key in ("task", "space", "subnets")}
    config = runs.convert.get("model_config") or json.loads((minilm_path() / "config.json").read_text())
    args = ConvertArguments(**options, model_config={**config, "num_labels": 2}, output_dir="unused")
    model = from_scratch(getattr(hf_elastic, TASKS[args.task]), args)
    full = model.flops_of("largest", sequence_length=32)
    share = {name: f"{model.flops_of(name, sequence_length=32) / full:.0%}" for name in names}
    return {name: (share[name], f"{model.num_parameters_of(name) / 1e6:.1f} M") for name in names}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "one", "table"))
    parser.add_argument("task", choices=tuple(RECIPES))
    parser.add_argument("--data-dir", help="folder that holds glue/TASK and wikitext2; to train")
    parser.add_argument("--output", default="runs/sizes", help="folder for the results")
    parser.add_argument("--part", choices=("sizes", "ablation"), default="sizes")
    parser.add_argument("--names", nargs="+", help="only these runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (processes)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    args = parser.parse_args()
    if args.command != "table" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds glue/TASK and wikitext2")
    {"run": run, "one": one, "table": table}[args.command](args)
    if args.command == "run":
        table(args)


if __name__ == "__main__":
    main()
