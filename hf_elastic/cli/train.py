"""`hf-elastic train`: train the sizes of an elastic model together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_atomically
from ..training.arguments import ElasticTrainingArguments
from .common import parse
from .data import DataArguments, load_elastic, load_tokenizer, prepare_for


@dataclass
class TrainArguments(DataArguments):
    """What to train and on what."""

    teacher: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a stock model to distil from; default: the largest size itself."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, train nothing."})


# What a command should do unless told otherwise; TrainingArguments' own defaults ask for services that may be missing.
DEFAULTS = {"report_to": ["none"], "logging_steps": 20, "save_total_limit": 2}


def main(argv: list[str]) -> int:
    """Run the command."""
    args, training = parse(
        [TrainArguments, ElasticTrainingArguments], argv, "train", "Train the sizes of an elastic model.", DEFAULTS
    )
    run(args, training)
    return 0


def run(args: TrainArguments, training: ElasticTrainingArguments) -> dict[str, float]:
    """Train, evaluate every named size, and save the supernet to `training.output_dir`.

    Returns:
        The metrics, also written to `metrics.json` there.
    """
    from ..metrics import compute_classification
    from ..training import ElasticTrainer

    folder = Path(training.output_dir)
    # Every process looks, and none writes before all have met, when the data are prepared.
    if not training.resume_from_checkpoint:
        check_folder(folder, args.overwrite)
    if args.dry_run:
        return {}
    model = load_elastic(args.model)
    tokenizer = load_tokenizer(args.model)
    with training.main_process_first(desc="data preparation"):  # the others then find it in the cache
        data = prepare_for(model, tokenizer, args)
    if data.labels:
        model.config.id2label = dict(enumerate(data.labels))
        model.config.label2id = {name: index for index, name in enumerate(data.labels)}
    trainer = ElasticTrainer(
        model=model,
        args=training,
        teacher=load_teacher(args.teacher, model),
        train_dataset=data.splits["train"],
        eval_dataset=data.splits["validation"],
        data_collator=data.collator,
        processing_class=tokenizer,
        compute_metrics=compute_classification if data.labels else None,
    )
    trainer.train(resume_from_checkpoint=_checkpoint(training))
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if the folder holds something and may not be written to."""
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"output_dir: {folder} is not empty; add --resume_from_checkpoint true to go on, or --overwrite to start again"
        )


def _checkpoint(training: ElasticTrainingArguments) -> str | bool | None:
    """What `Trainer.train` takes: a folder, True for the last checkpoint, or None."""
    value = training.resume_from_checkpoint
    return str(value).lower() == "true" if str(value).lower() in ("true", "false") else value


def load_teacher(name: str | None, model):
    """A stock model with the same head as `model`, or None."""
    if name is None:
        return None
    return type(model).base_auto_class.from_pretrained(name)
