"""Accuracy, loss and perplexity of a subnet in one pass over an evaluation set."""

import inspect
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticForCausalLM, ElasticForSequenceClassification, ElasticPreTrainedModel
from ..data.head import MULTI, REGRESSION, Head
from ..metrics import metrics_for
from ..utils.lengths import check_length
from ..utils.tokenizer import set_padding
from .values import ACCURACY, F1, LOSS, MATTHEWS, MSE, PEARSON, PERPLEXITY, SPEARMAN

IGNORED = -100
LABELS = ("label", "label_ids", "labels")
# Not an input, but what the masked-language-model collator reads to spare special tokens.
FOR_COLLATORS = (*LABELS, "special_tokens_mask")
LARGEST_EXPONENT = 700.0  # exp of more is no finite float


@dataclass
class Totals:
    """Sums over the labels seen so far."""

    count: int = 0
    correct: int = 0
    loss: float = 0.0


# Name -> the value, from the sums.
METRICS: dict[str, Callable[[Totals], float]] = {
    ACCURACY: lambda totals: totals.correct / totals.count,
    LOSS: lambda totals: totals.loss / totals.count,
    PERPLEXITY: lambda totals: math.exp(min(totals.loss / totals.count, LARGEST_EXPONENT)),
}

# Scores of heads for sequences, which `metrics_for` computes from all rows at once: of one label a row, several, or a number.
CLASSES, SEVERAL, NUMBERS = (F1, MATTHEWS), (ACCURACY, F1), (PEARSON, SPEARMAN, MSE)


class QualityPass:
    """Computes the wanted metrics of a model in one pass; every model sees the same batches.

    A label of -100 does not count; one that the data set names (`ClassLabel`) is the head's label of that name. Causal language
    models are scored on the next token. The loss is the model's own, weighted by the labels that count, so that batches of
    different sizes average correctly.

    Args:
        model: the supernet; it decides which columns are inputs.
        rows: tokenized rows with labels: a `datasets.Dataset` or a list of dicts.
        wanted: any of accuracy, loss and perplexity, and the scores of the head's kind: f1 and matthews_correlation, with several
            labels a row f1, of a regression pearson, spearmanr and mse without accuracy; of none only the batches are made.
        batch_size: rows per batch; rows of similar length share one.
        data_collator: rows -> batch; padding to the longest row by default. A random one draws once, with `seed`.
        seed: seed of the collator.

    Raises:
        ValueError: no rows, rows that make no batch or are longer than the model's input, no labels, or a score that this head
            has not.
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel,
        rows: Iterable[Mapping],
        wanted: Sequence[str],
        batch_size: int = 32,
        data_collator: Callable[[list[dict]], Mapping] | None = None,
        seed: int = 0,
    ):
        self.wanted = tuple(wanted)
        self.shifted = isinstance(model, ElasticForCausalLM)
        inputs = set(inspect.signature(model.base.forward).parameters)
        kept = {*inputs, *FOR_COLLATORS}
        is_sequence = isinstance(model, ElasticForSequenceClassification)
        if is_sequence:
            set_padding(model.config)
        from ..data.labels import labels_by_name  # which imports datasets, and is slow

        rows = labels_by_name(rows, model.config)
        ordered = sorted(rows, key=row_length, reverse=True)  # long rows first: memory runs out at once or not at all
        if ordered:
            check_length("eval_dataset", row_length(ordered[0]), model.base)
        ordered = [{key: value for key, value in row.items() if key in kept} for row in ordered]
        collate = data_collator or PadRows(model.config.pad_token_id or 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            chunks = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
            batches = [_collate(collate, chunk) for chunk in chunks]
        self.batches = [{key: value for key, value in batch.items() if key in inputs} for batch in batches]
        self._compute, self._scores = None, []
        if self.wanted:
            self._check_labels(batches)
            self._check_scores(model, batches[0]["labels"], is_sequence)

    def _check_labels(self, batches: list[Mapping]) -> None:
        if not batches:
            raise UserError("eval_dataset has no rows")
        if "labels" not in batches[0]:
            raise UserError(
                f"eval_dataset needs labels for {', '.join(self.wanted)}; its batches have: {', '.join(batches[0])}. "
                "Add a labels column, or give a data_collator or compute_quality"
            )
        if not any(self._counted(batch["labels"]).any() for batch in batches):
            raise UserError(f"eval_dataset has no label other than {IGNORED}")

    def _check_scores(self, model: ElasticPreTrainedModel, labels: torch.Tensor, is_sequence: bool) -> None:
        """Which of what is wanted is computed from all rows at once, and how."""
        known, is_float = [ACCURACY], labels.is_floating_point()
        if is_sequence:
            kind = Head.of(model.config).problem_type or (MULTI if is_float else None)
            if kind == MULTI:
                model.config.problem_type = MULTI  # as the stock model would with the first such batch
            if is_float != (kind in (MULTI, REGRESSION)):
                raise UserError(f"eval_dataset has labels of type {labels.dtype}, which a head with problem_type {kind} has not")
            self._scores = list({MULTI: SEVERAL, REGRESSION: NUMBERS}.get(kind, CLASSES))
            self._compute = metrics_for(model.config)
            known = [*([] if kind == REGRESSION else [ACCURACY]), *self._scores]
        elif is_float:
            known = []
        known = dict.fromkeys([*known, LOSS, PERPLEXITY])
        if unknown := [name for name in self.wanted if name not in known]:
            raise UserError(f"{unknown[0]} is no score of this head and these labels; they have: {', '.join(known)}")
        self._scores = [name for name in self._scores if name in self.wanted]

    def _scored(self, labels: torch.Tensor) -> torch.Tensor:
        return labels[:, 1:] if self.shifted else labels

    def _counted(self, labels: torch.Tensor) -> torch.Tensor:
        return self._scored(labels) != IGNORED

    @torch.inference_mode()
    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """The wanted metrics of a stock model or a view."""
        totals, predicted, expected = Totals(), [], []
        for batch in self.batches:
            batch = {key: value.to(model.device) for key, value in batch.items()}
            counted = self._counted(batch["labels"])
            count = int(counted.sum())
            if count == 0:  # its mean loss would be 0 / 0
                continue
            output = model(**batch)
            totals.count += count
            totals.loss += count * float(output.loss)
            if self._scores:
                predicted.append(output.logits.float().cpu().numpy())
                expected.append(batch["labels"].cpu().numpy())
            if ACCURACY in self.wanted and ACCURACY not in self._scores:
                logits = output.logits[:, :-1] if self.shifted else output.logits
                hits = logits.argmax(-1) == self._scored(batch["labels"])
                totals.correct += int((hits & counted).sum())
        scores = self._compute((np.concatenate(predicted), np.concatenate(expected))) if self._scores else {}
        return {name: scores[name] if name in self._scores else METRICS[name](totals) for name in self.wanted}


@dataclass(frozen=True)
class PadRows:
    """The default collator: pads every column to the longest row, on the right.

    Attributes:
        pad_token_id: what input ids are padded with. Labels are padded with -100, anything else with 0.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Rows of one set of columns -> a batch, with an attention mask."""
        batch = {}
        for key in rows[0]:
            name = "labels" if key in LABELS else key
            fill = {"input_ids": self.pad_token_id, "labels": IGNORED}.get(name, 0)
            columns = [torch.as_tensor(row[key]) for row in rows]
            batch[name] = pad_sequence(columns, True, fill) if columns[0].dim() else torch.stack(columns)
        if "attention_mask" not in batch:
            masks = [torch.ones_like(torch.as_tensor(row["input_ids"])) for row in rows]
            batch["attention_mask"] = pad_sequence(masks, True, 0)
        return batch


def _collate(collate: Callable, rows: list[dict]) -> Mapping:
    try:
        batch = collate(rows)
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError) as error:
        raise UserError(f"eval_dataset: {len(rows)} rows make no batch ({error}); give a data_collator that fits") from error
    if not isinstance(batch, Mapping) or not all(isinstance(v, torch.Tensor) for v in batch.values()):
        raise UserError(f"data_collator must return a dict of tensors, got {type(batch).__name__}: {batch!r:.200}")
    return batch


def row_length(row: Mapping) -> int:
    """Tokens in a row, padding not counted; the longest choice of a multiple-choice row.

    Raises:
        ValueError: the row is not tokenized.
    """
    if not isinstance(row, Mapping) or "input_ids" not in row:
        raise UserError(f"eval_dataset must have tokenized rows with input_ids, got {row!r:.200}")
    tokens = row.get("attention_mask", row["input_ids"])
    if len(tokens) and isinstance(tokens[0], list):
        return max(len(choice) for choice in tokens)
    if isinstance(tokens, torch.Tensor) and tokens.dim() > 1:
        return tokens.shape[-1]
    return int(sum(tokens)) if "attention_mask" in row else len(tokens)


def median_length(rows: Iterable[Mapping]) -> int:
    """Median of `row_length`, rounded up to a length that occurs."""
    return statistics.median_high(map(row_length, rows))
