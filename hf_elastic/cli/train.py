"""`hf-elastic train`: train the sizes of an elastic model together."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..core.loading import check_path
from ..data.task import PREPARED, TASKS
from ..training.arguments import ElasticTrainingArguments
from ..utils.files import full_disk_is_one_error, write_atomically
from ..utils.folders import check_folder, claimed
from ..utils.options import check_dtype, check_integers, read_mapping
from .common import parse
from .data import DataArguments, load_elastic, load_tokenizer, prepare_for


@dataclass(kw_only=True)
class TrainArguments(DataArguments):
    """What to train and on what."""

    teacher: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a model to distil from; default: the largest size itself."}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": f"To fine-tune a stock checkpoint as it is, into a stock checkpoint: its task, one of {', '.join(PREPARED)}; "
            "default: model is an elastic checkpoint, which knows its task."
        },
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "With task: number of classes of a new head (count); default: that of model."}
    )
    new_weights: bool = field(
        default=False, metadata={"help": "With task: train the architecture of model from new weights, not from those it has."}
    )
    max_eval_rows: int | None = field(
        default=None, metadata={"help": "Evaluate on the first so many rows of validation only (count); default: all."}
    )
    lora: str | None = field(
        default=None,
        metadata={
            "help": "Train a LoRA adapter instead of the weights: mapping of peft.LoraConfig options, such as r and "
            "target_modules ({} for peft's defaults). The adapter alone is saved; default: no adapter."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights in training and afterwards: float32 (bf16 and fp16 then only compute in half precision), "
            "float16, bfloat16, or auto (as in the checkpoint)."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Whether to write into a folder that is not empty."})
    dry_run: bool = field(default=False, metadata={"help": "Whether to check the arguments only and train nothing."})

    def __post_init__(self):
        if self.task is not None and self.task not in PREPARED:
            raise UserError(f"task: {self.task!r} is unknown; known: {', '.join(PREPARED)}")
        if self.task is not None and self.lora is not None:
            raise UserError("task: a stock checkpoint is fine-tuned without lora; use peft itself, or convert it first")
        if self.task is None and self.new_weights:
            raise UserError(
                "new_weights: only with task; hf-elastic convert --model_config makes an elastic model of new weights"
            )
        check_integers(1, or_none=True, num_labels=self.num_labels, max_eval_rows=self.max_eval_rows)
        check_dtype(self.dtype, "auto")
        self.lora = read_mapping("lora", self.lora)


# What a command should do unless told otherwise; TrainingArguments' own defaults ask for services that may be missing.
DEFAULTS = {"report_to": ["none"], "logging_steps": 20, "save_total_limit": 2}


def main(argv: list[str]) -> int:
    """Run the command."""
    args, training = parse([TrainArguments, ElasticTrainingArguments], argv, "train", DEFAULTS)
    run(args, training)
    return 0


def run(args: TrainArguments, training: ElasticTrainingArguments) -> dict[str, float]:
    """Train, evaluate every named size, and save the supernet (or the stock checkpoint) to `training.output_dir`.

    Returns:
        The metrics, also written to `metrics.json` there.
    """
    folder = Path(training.output_dir)
    given = training.resume_from_checkpoint
    checkpoint = {"true": True, "false": None}.get(str(given).lower(), given)
    # Every process looks, and none writes before all have met, when the data are prepared.
    if not checkpoint:
        from ..training.checkpoints import checkpoints, is_complete

        goes_on = any(map(is_complete, checkpoints(str(folder))))
        start = f"add {'--resume_from_checkpoint true to go on, or ' if goes_on else ''}--overwrite to start again"
        check_folder(folder, overwrite=args.overwrite, otherwise=start)
    if args.dry_run:
        return {}
    # The other processes of one training write to the same folder.
    claim = claimed(folder) if training.process_index == 0 else nullcontext()
    with claim, full_disk_is_one_error(folder, "checkpoints that are complete are still there"):
        return train(args, training, folder, checkpoint)


def train(args: TrainArguments, training: ElasticTrainingArguments, folder: Path, checkpoint: bool | str | None) -> dict:
    """Train from the start or from a checkpoint, and write to a folder that is nobody else's; returns the metrics."""
    from transformers import TrainerCallback, set_seed

    from ..core.modeling_elastic import ElasticForSequenceClassification
    from ..export.checkpoint import save_standard
    from ..metrics import metrics_for
    from ..training import ElasticTrainer
    from ..training.lora import add_lora
    from ..training.precision import describe

    set_seed(training.seed)  # a new head and a new adapter are drawn before Trainer sets it
    model = load_elastic(args.checkpoint, args.dtype) if args.task is None else load_stock(args)
    tokenizer = load_tokenizer(args.checkpoint)
    with training.main_process_first(desc="data preparation"):  # the others then find it in the cache
        data = prepare_for(model, tokenizer, args)
    if data.labels:
        model.config.id2label = dict(enumerate(data.labels))  # those of the head, where it has named them
        model.config.label2id = {name: index for index, name in enumerate(data.labels)}
    held_out = data.splits["validation"]
    trainer = ElasticTrainer(
        model=model if args.lora is None else add_lora(model, args.lora),
        args=training,
        teacher=load_teacher(args.teacher, model, tokenizer, training),
        train_dataset=data.splits["train"],
        eval_dataset=held_out if args.max_eval_rows is None else held_out.select(range(min(args.max_eval_rows, len(held_out)))),
        data_collator=data.collator,
        callbacks=[data.collator] if isinstance(data.collator, TrainerCallback) else None,
        processing_class=tokenizer,
        compute_metrics=metrics_for(model.config) if isinstance(model, ElasticForSequenceClassification) else None,
    )
    if trainer.is_world_process_zero():
        print(describe(training))
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    if args.task is None:
        trainer.save_model()
    elif trainer.args.should_save:
        save_standard(model.extract(None) if model.frozen_cut is None else model.base, folder, tokenizer)
    if trainer.is_world_process_zero():
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def load_stock(args: TrainArguments):
    """A stock checkpoint as an elastic model of one size, whose training is plain fine-tuning.

    Raises:
        UserError: it is elastic already, or the architecture has no such head.
    """
    import torch

    import hf_elastic

    from ..core.loading import load_checkpoint, load_config
    from ..export.architecture import frozen_config

    elastic_class = getattr(hf_elastic, TASKS[args.task])
    options = {} if args.num_labels is None else {"num_labels": args.num_labels}
    elastic_class._check_architecture(config := load_config(args.checkpoint, **options))
    frozen = frozen_config(config)
    if args.new_weights:
        stock = elastic_class.stock_class(config)(config)
        stock = stock if args.dtype == "auto" else stock.to(getattr(torch, args.dtype))
    else:
        stock = load_checkpoint(elastic_class.base_auto_class.from_pretrained, args.checkpoint, dtype=args.dtype, **options)
    if frozen is None:
        return elastic_class.from_base(stock, importance="none")
    # Its layers differ: a layout is that of the largest layer, and is cut to these.
    model = elastic_class(frozen).to(stock.dtype)
    model.load_state_dict(stock.state_dict())
    return model


def load_teacher(name: str | None, model, tokenizer, training: ElasticTrainingArguments):
    """A teacher with the same tokens as `model`, stock or elastic, or None; with its head where predictions are compared.

    Raises:
        UserError: it is no checkpoint for this head, lacks weights of the head, or its tokenizer turns text into other ids.
        OSError: there is no such checkpoint.
    """
    if name is None:
        return None
    from transformers import AutoConfig, AutoModel

    from ..training.losses import NEEDS_PREDICTIONS
    from ..training.teacher import check_tokenizers, terms_of

    check_path(name)
    predicting = sorted(terms_of(training) & NEEDS_PREDICTIONS)
    try:
        is_elastic = AutoConfig.from_pretrained(name).model_type == "elastic"
        check_tokenizers(load_tokenizer(name), tokenizer)
        if is_elastic:
            return load_elastic(name)
        loader = type(model).base_auto_class if predicting else AutoModel
        teacher, info = loader.from_pretrained(name, output_loading_info=True)
    except ValueError as error:
        raise UserError(f"teacher: {name}: {error}") from error
    missing = sorted(info["missing_keys"])
    if predicting and missing:
        raise UserError(
            f"teacher: {name} has no weights of the head ({missing[0]}), so it cannot teach {', '.join(predicting)}; "
            "it can teach hidden states"
        )
    return teacher
