"""What a model's head means for its data: which columns, which labels, which collator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..utils.options import check_integers

if TYPE_CHECKING:  # the commands read TASKS to print their help, which should not wait for these
    from datasets import DatasetDict
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Task on the command line -> elastic class.
TASKS = {
    "sequence-classification": "ElasticForSequenceClassification",
    "causal-lm": "ElasticForCausalLM",
    "masked-lm": "ElasticForMaskedLM",
    "token-classification": "ElasticForTokenClassification",
    "question-answering": "ElasticForQuestionAnswering",
    "multiple-choice": "ElasticForMultipleChoice",
    "feature-extraction": "ElasticModel",
}
# Tasks whose data the command line prepares by itself.
PREPARED = ("sequence-classification", "causal-lm", "masked-lm")


@dataclass(frozen=True)
class TaskData:
    """Tokenized splits, how to batch them, and what the labels are called.

    Attributes:
        splits: `train`, `validation` and perhaps `test`, ready for a Trainer.
        collator: makes a padded batch.
        labels: names of the classes; empty for language models.
        text_columns: where the text came from.
        raw: the splits before tokenization.
    """

    splits: DatasetDict
    collator: object
    labels: list[str]
    text_columns: list[str]
    raw: DatasetDict


def task_of(class_name: str) -> str:
    """The task that an elastic class is for.

    Raises:
        UserError: it is none of the known classes.
    """
    for task, name in TASKS.items():
        if name == class_name:
            return task
    raise UserError(f"{class_name} is not an elastic model; known: {', '.join(TASKS.values())}")


def read_classes(
    dataset: DatasetDict, text: Sequence[str] | None, label: str | None
) -> tuple[DatasetDict, list[str], str, list[str]]:
    """A classification data set with integer labels.

    Returns:
        the data set, its text columns, its label column, and the names of the classes.
    """
    from .loading import columns_of, encode_labels

    columns, label_column = columns_of(dataset, text=text, label=label, task="sequence-classification")
    dataset, names = encode_labels(dataset, label_column)
    return dataset, columns, label_column, names


def prepare(
    task: str,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: PretrainedConfig,
    dataset_config: str | None = None,
    text: Sequence[str] | None = None,
    label: str | None = None,
    max_length: int = 128,
    max_train_rows: int | None = None,
) -> TaskData:
    """Load and tokenize a data set for a task.

    Args:
        task: one of `PREPARED`.
        name: as for `load_text_dataset`.
        tokenizer: the model's.
        config: the model's; its `num_labels` bounds the labels.
        dataset_config: configuration of a Hub data set.
        text: text columns; None to find them by their usual names.
        label: label column; None to find it.
        max_length: tokens per example or block.
        max_train_rows: rows of `train` to keep, drawn with the seed 0; None is all.

    Raises:
        UserError: the task is prepared in Python only, a column is missing, a label is outside the head's range, or the tokenizer
            lacks a token that the task needs.
    """
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, default_data_collator

    from .loading import check_labels, columns_of, load_text_dataset, tokenize_classification, tokenize_language_modeling

    if task not in PREPARED:
        raise UserError(f"the command line prepares data for {', '.join(PREPARED)}; for {task}, use ElasticTrainer in Python")
    check_integers(1, or_none=True, max_train_rows=max_train_rows)
    needed = {"sequence-classification": "pad_token", "masked-lm": "mask_token"}.get(task)
    if needed is not None and getattr(tokenizer, needed) is None:
        raise UserError(f"the tokenizer has no {needed}, which {task} needs; set it and save the tokenizer with the model")
    raw = load_text_dataset(name, config=dataset_config)
    if max_train_rows is not None:
        rows = raw["train"].shuffle(seed=0)
        raw["train"] = rows.select(range(min(max_train_rows, len(rows))))
    if task == "sequence-classification":
        raw, columns, label_column, names = read_classes(raw, text, label)
        check_labels(raw, label_column, config.num_labels)
        splits = tokenize_classification(raw, tokenizer, columns, label_column, max_length)
        return TaskData(splits, DataCollatorWithPadding(tokenizer), names, columns, raw)
    columns, _ = columns_of(raw, text=text, label=None, task=task)
    splits = tokenize_language_modeling(raw, tokenizer, columns[0], max_length)
    collator = DataCollatorForLanguageModeling(tokenizer) if task == "masked-lm" else default_data_collator
    return TaskData(splits, collator, [], columns, raw)
