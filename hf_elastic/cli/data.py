"""Options and loading that train, search and export share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils.hub import cached_file, has_file

from ..core.errors import UserError
from ..core.loading import check_path, load_config
from ..utils.options import read_mapping


@dataclass(kw_only=True)
class Source:
    """Where in a repository the checkpoint `model` is."""

    revision: str | None = field(default=None, metadata={"help": "Of a model on the Hub: branch, tag or commit; default: main."})
    subfolder: str | None = field(default=None, metadata={"help": "Of the model's repository or folder, with its tokenizer."})

    @property
    def checkpoint(self) -> str:
        """The model as every loader takes it: its id or folder, or the folder that holds the revision and subfolder.

        Raises:
            UserError: a revision of a local folder, or no such subfolder; the message lists those that there are.
            OSError: no such repository, revision or connection.
        """
        return fetch(self.model, self.revision, self.subfolder)


@dataclass(kw_only=True)
class ModelArguments(Source):
    """An elastic model."""

    model: str = field(metadata={"help": "Folder or Hub id of an elastic checkpoint, or of an adapter for one."})


@dataclass(kw_only=True)
class DataArguments(ModelArguments):
    """An elastic model and a data set."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "A local folder or file, or a Hub id; or what comes with Python: 'stdlib-docstrings' (the default for "
            "classifiers) or 'stdlib-texts' (for language models)."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder in which a relative `dataset` is looked up."})
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on this many rows, drawn with the seed 0 (count); default: all."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One or two text columns; default: found by name."})
    label_column: str | None = field(default=None, metadata={"help": "Label column; default: found by name."})
    max_length: int = field(default=128, metadata={"help": "Longest input (tokens); no more than the model takes."})


@cache
def fetch(name: str, revision: str | None, subfolder: str | None) -> str:
    """See `Source.checkpoint`."""
    if revision is None and subfolder is None:
        return name
    check_path(name)
    if Path(name).is_dir():
        if revision is not None:
            raise UserError(f"revision: {name} is a local folder, which has none")
        folder = Path(name)
    else:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=subfolder and f"{subfolder}/*"))
    if not (folder / (subfolder or "")).is_dir():
        known = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")) or "none"
        raise UserError(f"subfolder: there is no {subfolder!r} in {name}; it has: {known}")
    return str(folder / (subfolder or ""))


def load_elastic(name: str, dtype: str = "auto"):
    """Load an elastic checkpoint with the head that it was saved with; of an adapter its base, with the adapter merged.

    Args:
        name: Hub id or local folder.
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        FileNotFoundError: `name`, or the base of an adapter, looks like a path and is none.
        ValueError: the checkpoint is not elastic, or the adapter does not say what it is for or cannot be cut.
        ImportError: it is an adapter, and peft is not installed.
    """
    import hf_elastic

    check_path(name)
    if has_file(name, ADAPTER_CONFIG_NAME):
        from ..training.lora import load_adapter

        return load_adapter(load_elastic(adapter_base(name), dtype), name).merge_and_unload()
    config = load_config(name)
    if config.model_type != "elastic":
        raise UserError(f"model: {name} is a {config.model_type} checkpoint; make it elastic with hf-elastic convert first")
    if not config.architectures or config.architectures[0] not in hf_elastic.__all__:
        raise UserError(f"model: the config of {name} names no elastic architecture, but {config.architectures}")
    return getattr(hf_elastic, config.architectures[0]).from_pretrained(name, dtype=dtype)


def check_device(name: str) -> str:
    """The name of a device that this machine has.

    Raises:
        ValueError: torch cannot use it.
    """
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a torch without CUDA asserts that it has it
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {name!r} cannot be used here: {reason}") from error
    return name


def adapter_base(name: str) -> str:
    """Folder or Hub id of the checkpoint that an adapter is for.

    Raises:
        ValueError: the adapter does not say.
        FileNotFoundError: it is a folder that is not there.
    """
    base = read_mapping(f"model: {ADAPTER_CONFIG_NAME}", Path(cached_file(name, ADAPTER_CONFIG_NAME))).get(
        "base_model_name_or_path"
    )
    if not base:
        raise UserError(f"model: {name} is an adapter, and its {ADAPTER_CONFIG_NAME} has no base_model_name_or_path")
    try:
        check_path(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model: {name} is an adapter for a checkpoint that is gone: {error}") from error
    return base


def load_tokenizer(name: str):
    """The tokenizer saved with a checkpoint; with an adapter, or else with its base."""
    from transformers import AutoTokenizer

    if has_file(name, ADAPTER_CONFIG_NAME) and not has_file(name, "tokenizer_config.json"):
        name = adapter_base(name)
    return AutoTokenizer.from_pretrained(name)


def located(dataset: str, data_dir: str | None) -> str:
    """Where a data set is.

    Raises:
        FileNotFoundError: `data_dir` has no such data set.
    """
    if data_dir is None:
        return dataset
    path = Path(data_dir) / dataset
    if not path.exists():
        raise FileNotFoundError(f"data_dir: no {dataset} in {data_dir}")
    return str(path)


def prepare_for(model, tokenizer, args: DataArguments):
    """The tokenized data set for the model's head.

    Raises:
        FileNotFoundError: `data_dir` has no such data set.
        ValueError: `max_train_rows` is below 1; or as for `prepare`.
    """
    from ..data.task import prepare, task_of
    from ..utils.lengths import longest_sequence

    task, name = task_of(type(model).__name__), args.dataset
    if name is None:
        name = "stdlib-docstrings" if task == "sequence-classification" else "stdlib-texts"
        print(f"dataset: none given, so {name}, which comes with Python")
    return prepare(
        task,
        located(name, args.data_dir),
        tokenizer,
        config=model.config,
        longest=longest_sequence(model.base),
        dataset_config=args.dataset_config,
        text=args.text_columns,
        label=args.label_column,
        max_length=args.max_length,
        max_train_rows=args.max_train_rows,
    )
