"""Options and loading that train, search and export share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..loading import check_path


@dataclass
class DataArguments:
    """An elastic model and a data set."""

    model: str = field(metadata={"help": "Folder or Hub id of an elastic checkpoint."})
    dataset: str = field(
        default="stdlib-docstrings", metadata={"help": "'stdlib-docstrings', a local folder or file, or a Hub id."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder in which a relative `dataset` is looked up."})
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on this many rows, drawn with the seed 0 (count); default: all."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One or two text columns; default: found by name."})
    label_column: str | None = field(default=None, metadata={"help": "Label column; default: found by name."})
    max_length: int = field(default=128, metadata={"help": "Longest input (tokens)."})


def load_elastic(name: str):
    """Load an elastic checkpoint with the head that it was saved with.

    Raises:
        FileNotFoundError: `name` looks like a path and is none.
        ValueError: the checkpoint is not elastic.
    """
    from transformers import AutoConfig

    import hf_elastic

    check_path(name)
    config = AutoConfig.from_pretrained(name)
    if config.model_type != "elastic":
        raise ValueError(f"model: {name} is a {config.model_type} checkpoint; make it elastic with hf-elastic convert first")
    return getattr(hf_elastic, config.architectures[0]).from_pretrained(name)


def load_tokenizer(name: str):
    """The tokenizer saved with a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def prepare_for(model, tokenizer, args: DataArguments):
    """The tokenized data set for the model's head.

    Raises:
        FileNotFoundError: `data_dir` has no such data set.
        ValueError: `max_train_rows` is below 1; or as for `prepare`.
    """
    from ..data.task import prepare, task_of

    dataset = args.dataset
    if args.data_dir is not None:
        dataset = str(Path(args.data_dir) / dataset)
        if not Path(dataset).exists():
            raise FileNotFoundError(f"data_dir: no {args.dataset} in {args.data_dir}")
    return prepare(
        task_of(type(model).__name__),
        dataset,
        tokenizer,
        config=model.config,
        dataset_config=args.dataset_config,
        text=args.text_columns,
        label=args.label_column,
        max_length=args.max_length,
        max_train_rows=args.max_train_rows,
    )
