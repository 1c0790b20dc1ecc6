"""What the runs of sizes.py are made of: models, data, arguments, one training."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import tempfile
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {task: ROOT / "minilm" / task for task in ("sst2", "mrpc", "qnli", "cola")} | {"wikitext2": ROOT / "gpt2/wikitext2"}
METRIC = {"cola": "matthews_correlation", "wikitext2": "perplexity"}
CLASSIFICATION = ("accuracy", "f1", "matthews_correlation")
TAUGHT = {"teacher": "finetuned", "subnet_dropout": False}
# What each variant of the elastic training changes in the recipe, which has sandwich sampling and logits.
VARIANTS = {
    "elastic": {},
    "fixed teacher": {"teacher": "finetuned"},
    "no distillation": {"distillation": {}, "task_weight": 1.0},
    "logits + hidden": {"distillation": {"logits": 0.5, "hidden": 0.1}},
    "logits + relation": {"distillation": {"logits": 0.5, "relation": 0.5}},
    "logits + hidden + relation": {"distillation": {"logits": 0.5, "hidden": 0.1, "relation": 0.5}},
    "logits + pkd": {"distillation": {"logits": 0.5, "pkd": 0.5}},
    "dist": {"distillation": {"dist": 0.5}},
    "dropout in the largest": {"subnet_dropout": False},
    "all": {"sampling": "all"},
    "single path": {"sampling": "single_path"},
    "pcgrad": {"gradient_surgery": "pcgrad"},
    "fixed teacher, dropout in the largest": TAUGHT,
    "all, fixed teacher, dropout in the largest": {**TAUGHT, "sampling": "all"},
}
# Drawn with the seed 0: testing all rows of WikiText-2 would take longer than training.
MAX_TEST_ROWS = {"wikitext2": 800}
# The others only by --names.
ABLATION = ("elastic", "no distillation", "logits + hidden", "logits + hidden + relation", "all", "single path")


def recipe(task: str, stage: str) -> dict:
    """A recipe of a task."""
    return yaml.safe_load((RECIPES[task] / f"{stage}.yaml").read_text())


class Runs:
    """Where the runs of a task are, and what they are made of.

    Args:
        task: one of `RECIPES`.
        data_dir: folder that holds glue/TASK and wikitext2.
        output: folder for the results.
        max_train_rows: of the training set; None for the recipe's number.
        bf16: whether to train in bfloat16; None for what the recipe says.
    """

    def __init__(self, task: str, data_dir: str, output: str, max_train_rows: int | None = None, bf16: bool | None = None):
        self.task = task
        self.data_dir = data_dir
        self.rows = {"max_train_rows": max_train_rows} if max_train_rows else {}
        self.precision = {} if bf16 is None else {"bf16": bf16}
        self.folder = Path(output) / task
        self.is_language_model = METRIC.get(task) == "perplexity"
        self.kinds_alone = ("plain",) if self.is_language_model else ("plain", "distilled")  # how a size is trained on its own
        self.convert = recipe(task, "convert")

    def result(self, name: str, seed: int) -> Path:
        """Where the result of a run is."""
        return self.folder / f"{name.replace('/', '-').replace(' ', '')}-{seed}.json"

    def results(self, name: str) -> list[dict]:
        """All seeds of a run."""
        pattern = self.result(name, 0).name.removesuffix("-0.json") + "-[0-9]*.json"
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(pattern))]

    def finetuned(self, seed: int) -> Path:
        """The fine-tuned full model of a seed."""
        return self.folder / f"finetuned-{seed}"

    def supernet(self, seed: int):
        """The recipe's elastic model, new weights drawn with the seed, and its tokenizer."""
        from hf_elastic.cli import convert
        from hf_elastic.cli.data import load_elastic, load_tokenizer

        options = {**self.convert, "data_dir": self.data_dir, "seed": seed}
        options.pop("output_dir", None)
        if "model" in options:
            options["model"] = str(self.finetuned(seed))
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            convert.run(convert.ConvertArguments(folder, overwrite=True), convert.ConvertConfig(**options))
            return load_elastic(folder), load_tokenizer(folder)

    def without_weights(self):
        """The recipe's elastic model without storage for its weights, to count what its sizes have."""
        import hf_elastic
        from hf_elastic.cli.convert import ConvertConfig, from_scratch
        from hf_elastic.data.minilm import minilm_path
        from hf_elastic.data.task import TASKS

        options = {key: self.convert[key] for key in ("task", "space", "subnets", "layer_order") if key in self.convert}
        config = self.convert.get("model_config") or json.loads((minilm_path() / "config.json").read_text(encoding="utf-8"))
        made = ConvertConfig(**options, model_config={**config, "num_labels": 2})
        with torch.device("meta"):
            return from_scratch(getattr(hf_elastic, TASKS[made.task]), made)

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
        return prepare_for(model, tokenizer, DataArguments(**{**options, **self.rows, "data_dir": self.data_dir}))

    def arguments(self, stage: str, seed: int, output_dir: str, changes: dict):
        """Training arguments of a recipe, for a plain or an elastic Trainer."""
        from hf_elastic import ElasticTrainingArguments

        options = known_to(ElasticTrainingArguments, {**recipe(self.task, stage), **self.precision, **changes})
        if not self.is_language_model:
            options["train_sampling_strategy"] = "group_by_length"  # padding is half of the work otherwise
        fixed = {"output_dir": output_dir, "seed": seed, "report_to": ["none"], "logging_steps": 100, "disable_tqdm": True}
        return ElasticTrainingArguments(**{**options, **fixed, "save_strategy": "no"})


def known_to(kind: type, options: dict) -> dict:
    """The options that a dataclass has."""
    known = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in options.items() if key in known}


def trainer_of(runs: Runs, name: str, seed: int, scratch: str, changes: dict):
    """The trainer of a run, its model (elastic, before anything is cut out of it), tokenizer and data."""
    from transformers import Trainer

    from hf_elastic import ElasticTrainer
    from hf_elastic.metrics import compute_classification

    kind, _, size = name.partition("/")
    model, tokenizer = runs.pretrained(seed) if kind == "finetuned" else runs.supernet(seed)
    data = runs.data(model, tokenizer)
    shared = {"train_dataset": data.splits["train"], "data_collator": data.collator}
    if data.labels:
        shared["compute_metrics"] = compute_classification
    if kind in ("plain", "finetuned"):
        stage = "finetune" if kind == "finetuned" else "train"
        args = runs.arguments(stage, seed, scratch, changes)
        return Trainer(model=plain_model(model, size or None), args=args, **shared), model, tokenizer, data
    changes = {**VARIANTS.get(kind, {}), **changes}
    args = runs.arguments("train", seed, scratch, changes)
    taught = kind == "distilled" or changes.get("teacher")
    teacher = type(model).base_auto_class.from_pretrained(runs.finetuned(seed)) if taught else None
    if kind == "distilled":
        model = type(model).from_base(plain_model(model, size), importance="none")
        args = dataclasses.replace(args, train_subnets=None, eval_subnets=[], size_weights="uniform")
    return ElasticTrainer(model=model, args=args, teacher=teacher, **shared), model, tokenizer, data


def train_run(runs: Runs, name: str, seed: int) -> dict:
    """Train one run and measure every size that it gives."""
    from transformers import Trainer

    from hf_elastic.export.checkpoint import save_standard

    kind, _, size = name.partition("/")
    with tempfile.TemporaryDirectory() as scratch:
        trainer, model, tokenizer, data = trainer_of(runs, name, seed, scratch, {})
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
        if len(held_out) > MAX_TEST_ROWS.get(runs.task, len(held_out)):
            held_out = held_out.shuffle(seed=0).select(range(MAX_TEST_ROWS[runs.task]))
        plain = runs.arguments("train", seed, scratch, {"bf16": False})
        sizes = {}
        for label, one in trained.items():
            tester = Trainer(model=one.eval(), args=plain, data_collator=data.collator, compute_metrics=trainer.compute_metrics)
            metrics = tester.evaluate(held_out)
            if data.labels:
                sizes[label] = {key: metrics[f"eval_{key}"] for key in CLASSIFICATION}
            else:
                sizes[label] = {"perplexity": math.exp(metrics["eval_loss"])}
    found = {"run": name, "seed": seed, "bf16": trainer.args.bf16, "seconds": seconds, "steps": trainer.state.global_step}
    return {"task": runs.task, **found, "rows": len(held_out), "sizes": sizes}


def seconds_of(runs: Runs, name: str, seed: int, steps: int) -> float:
    """Time of the first optimizer steps of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer, *_ = trainer_of(runs, name, seed, scratch, {"max_steps": steps})
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def plain_model(model, size: str | None):
    """A size as a model of its own, which plain Trainer trains: the stock class, or the tree that an elastic size is."""
    from hf_elastic.core.modeling_elastic import ElasticPreTrainedModel

    extracted = model.extract(size)
    return extracted.base if isinstance(extracted, ElasticPreTrainedModel) else extracted
