"""Scores on rows that were held out, and latencies of runtimes side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import (
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForSequenceClassification,
    ElasticPreTrainedModel,
)
from ..measure.latency import Latency, Watch, measure_latency, measurement_warnings
from ..measure.quality import IGNORED, QualityPass
from ..measure.values import ACCURACY, LOSS, PERPLEXITY
from ..metrics import compute_classification, metrics_for
from .outputs import predict
from .parity import ParityError

# Blocks in which a runtime is timed alone, after a pause in which the threads of the others have gone to sleep.
ROUNDS, CALLS, PAUSE_SECONDS = 5, 8, 0.05


@dataclass(frozen=True)
class HeldOut:
    """Labelled rows, batched once, so that the view and every file see the same.

    Attributes:
        name: where they are from, for the record.
        batches: inputs and `labels`.
        rows: how many.
        is_language_model: labels are tokens; scored by accuracy of the next (or masked) token and perplexity, the others by
            accuracy, F1 and Matthews correlation, or by `compute`.
        is_shifted: labels are scored against the logits one place before.
        compute: of labels that are numbers: (logits, labels) -> scores. A regression has no accuracy.
        reference_scores: what a loss of accuracy counts from; None for what the exported view scores. Where the model was changed
            before the export, as by pruning its vocabulary, they are those of the model before.
        full_scores: likewise, of the full size.
    """

    name: str
    batches: tuple[Mapping[str, torch.Tensor], ...]
    rows: int
    is_language_model: bool
    is_shifted: bool
    compute: Callable[[tuple], Mapping[str, float]] | None = None
    reference_scores: Mapping[str, float] | None = None
    full_scores: Mapping[str, float] | None = None

    @classmethod
    def from_rows(
        cls, model: ElasticPreTrainedModel, rows: Iterable[Mapping], collator: Callable, name: str, batch_size: int = 32
    ) -> HeldOut:
        """Batch tokenized rows with labels.

        Args:
            model: the supernet; it says which columns are inputs.
            rows: `input_ids`, `attention_mask`, ... and `labels`.
            collator: rows -> padded batch.
            name: for the record.
            batch_size: rows per batch (count).

        Raises:
            ValueError: no rows, or labels that do not fit the head.
        """
        rows = list(rows)
        is_sequence = isinstance(model, ElasticForSequenceClassification)
        quality = QualityPass(model, rows, [LOSS if is_sequence else ACCURACY], batch_size, collator)
        is_language_model = isinstance(model, (ElasticForCausalLM, ElasticForMaskedLM))
        compute = metrics_for(model.config) if quality.batches[0]["labels"].is_floating_point() else None
        return cls(name, tuple(quality.batches), len(rows), is_language_model, quality.shifted, compute)

    def score_of(self, model: PreTrainedModel) -> dict[str, float]:
        """`score` of a model in torch."""
        return self.score(lambda batch: predict(model, batch))

    def score(self, run: Callable[[Mapping[str, torch.Tensor]], np.ndarray]) -> dict[str, float]:
        """Accuracy (0 to 1) and the other metrics of the task.

        Args:
            run: inputs -> logits, which is `float[batch, classes]` or `float[batch, sequence, classes]`.
        """
        logits, labels = [], []
        loss = 0.0
        for batch in self.batches:
            found = run({name: tensor for name, tensor in batch.items() if name != "labels"})
            wanted = batch["labels"].numpy()
            if self.compute is not None:
                logits.append(found)
                labels.append(wanted)
                continue
            if self.is_shifted:
                found, wanted = found[:, :-1], wanted[:, 1:]
            counted = wanted != IGNORED
            found, wanted = found[counted], wanted[counted]
            if self.is_language_model:
                loss += _cross_entropy(found, wanted)
            # Of thousands of classes only the best is kept.
            logits.append(found.argmax(-1))
            labels.append(wanted)
        predicted, expected = np.concatenate(logits), np.concatenate(labels)
        if self.compute is not None:
            return dict(self.compute((predicted, expected)))
        if self.is_language_model:
            return {ACCURACY: float((predicted == expected).mean()), PERPLEXITY: math.exp(min(loss / len(expected), 700.0))}
        one_hot = np.eye(int(max(predicted.max(), expected.max())) + 1)[predicted]
        return {name: float(value) for name, value in compute_classification((one_hot, expected)).items()}

    def typical_input(self) -> dict[str, torch.Tensor]:
        """One row of the median length, without padding: `int64[1, sequence]` each."""
        lengths = [(int(mask.sum()), batch, row) for batch in self.batches for row, mask in enumerate(_masks(batch))]
        length, batch, row = sorted(lengths, key=lambda one: one[0])[len(lengths) // 2]
        kept = _masks(batch)[row].bool()
        names = [name for name in batch if name != "labels" and batch[name].shape == batch["input_ids"].shape]
        return {name: batch[name][row][..., kept].reshape(1, *batch[name].shape[1:-1], length) for name in names}


def _masks(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    mask = batch["attention_mask"]
    return mask if mask.dim() == 2 else mask[:, 0]


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The sum over rows."""
    values = torch.from_numpy(np.ascontiguousarray(logits)).float()
    return float(torch.nn.functional.cross_entropy(values, torch.from_numpy(labels), reduction="sum"))


def check_drop(name: str, held_out: HeldOut, view: Mapping, file: Mapping, max_drop: float | None) -> float | None:
    """Percentage points of accuracy that a file lost against the view that it came from; negative is a gain.

    None of a regression, which has no accuracy.

    Raises:
        ParityError: they are more than `max_drop`.
        UserError: `max_drop` is given for a regression.
    """
    if ACCURACY not in view:
        if max_drop is not None:
            raise UserError(f"max_accuracy_drop: a regression has no accuracy; it is scored by {', '.join(view)}")
        return None
    drop = 100 * (view[ACCURACY] - file[ACCURACY])
    if max_drop is not None and drop > max_drop + 1e-9:
        raise ParityError(
            f"{name}: accuracy on {held_out.rows} rows of {held_out.name} falls from {view[ACCURACY]:.1%} to "
            f"{file[ACCURACY]:.1%}, {drop:.2f} points; max_accuracy_drop is {max_drop:g}"
        )
    return drop


def side_by_side(calls: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """Latencies of calls in different runtimes, in turns.

    Each round times each call alone, in a block of its own: a runtime keeps its idle threads spinning for a while, which would
    slow the next one down on the same cores.

    Returns:
        `NAME_ms` (median) and `NAME_interval_ms` (95%) of each call in milliseconds; `warnings` where a measurement is doubtful.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    watch = Watch()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            options = {"repeats": CALLS, "min_rounds": CALLS, "relative_interval": 0, "warmup": 2}
            samples[name] += measure_latency({name: call}, **options)[name].samples_ms
    others = watch.share()
    found = {name: Latency.from_samples(taken, others) for name, taken in samples.items()}
    record: dict[str, Any] = {}
    for name, latency in found.items():
        record[f"{name}_ms"] = round(latency.median_ms, 4)
        record[f"{name}_interval_ms"] = [round(latency.low_ms, 4), round(latency.high_ms, 4)]
    if warnings := measurement_warnings(list(found.values())):
        record["warnings"] = warnings
    return record
