"""What a model's head means for its data: which columns, which labels, which collator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..utils.options import check_integers

if TYPE_CHECKING:  # the commands read TASKS to print their help, which should not wait for these
    from datasets import DatasetDict
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from .labels import Labels

logger = logging.getLogger(__name__)

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
        labels: names of the head's labels, in the order of their ids; empty for language models and for a regression.
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


def read_labels(
    dataset: DatasetDict, text: Sequence[str] | None, label: str | None, config: PretrainedConfig | None
) -> tuple[list[str], str, Labels]:
    """A data set with the labels of a head; `config` as for `encode_labels`.

    Returns:
        the text columns, the label column, and what `encode_labels` gives.
    """
    from .labels import encode_labels
    from .loading import columns_of

    columns, label_column = columns_of(dataset, text=text, label=label, task="sequence-classification")
    return columns, label_column, encode_labels(dataset, label_column, config)


def prepare(
    task: str,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: PretrainedConfig,
    longest: int,
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
        config: the model's; its `id2label` says which label is which. It gets what the head lacks for the data: a `pad_token_id`,
            and a `problem_type` where rows have several labels.
        longest: the most tokens that the model takes; longer texts are cut.
        dataset_config: configuration of a Hub data set.
        text: text columns; None to find them by their usual names.
        label: label column; None to find it.
        max_length: tokens per example or block.
        max_train_rows: rows of `train` to keep, drawn with the seed 0; None is all.

    Raises:
        UserError: the task is prepared in Python only, a column is missing, a label is none of the head's, or the tokenizer lacks
            a token that the task needs.
    """
    from transformers import DataCollatorWithPadding, default_data_collator

    from ..utils.tokenizer import set_padding
    from .head import MULTI
    from .loading import columns_of, load_text_dataset, tokenize_classification, tokenize_language_modeling
    from .masking import ResumableMasking

    if task not in PREPARED:
        raise UserError(f"the command line prepares data for {', '.join(PREPARED)}; for {task}, use ElasticTrainer in Python")
    check_integers(1, or_none=True, max_train_rows=max_train_rows)
    check_integers(1, max_length=max_length)
    if task == "sequence-classification":
        set_padding(config, tokenizer)
    needed = {"sequence-classification": "pad_token", "masked-lm": "mask_token"}.get(task)
    if needed is not None and getattr(tokenizer, needed) is None:
        raise UserError(f"the tokenizer has no {needed}, which {task} needs; set it and save the tokenizer with the model")
    if max_length > longest:
        logger.warning("max_length: the model takes %d tokens at most, so it is not %d", longest, max_length)
        max_length = longest
    raw = load_text_dataset(name, config=dataset_config)
    if max_train_rows is not None:
        rows = raw["train"].shuffle(seed=0)
        raw["train"] = rows.select(range(min(max_train_rows, len(rows))))
    if task == "sequence-classification":
        columns, label_column, labels = read_labels(raw, text, label, config)
        if labels.problem_type == MULTI:
            config.problem_type = MULTI
        splits = tokenize_classification(labels.dataset, tokenizer, columns, label_column, max_length)
        return TaskData(splits, DataCollatorWithPadding(tokenizer), labels.names, columns, labels.dataset)
    columns, _ = columns_of(raw, text=text, label=None, task=task)
    splits = tokenize_language_modeling(raw, tokenizer, columns[0], max_length)
    collator = ResumableMasking(tokenizer) if task == "masked-lm" else default_data_collator
    return TaskData(splits, collator, [], columns, raw)
