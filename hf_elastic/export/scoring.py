"""What an export is worth: its accuracy on rows that were held out, its latency next to torch's, and its size on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.modeling_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticPreTrainedModel
from ..measure.latency import Latency, Watch, measure_latency, measurement_warnings
from ..measure.quality import IGNORED, QualityPass
from ..measure.values import ACCURACY
from ..metrics import compute_classification
from .parity import ParityError

if TYPE_CHECKING:
    from .formats import Export, Format

WEIGHT_SUFFIXES = (".onnx", ".onnx_data", ".xml", ".bin", ".safetensors", ".engine", ".plan")
PERPLEXITY = "perplexity"
# Blocks in which a runtime is timed alone, after a pause in which the threads of the others have gone to sleep.
ROUNDS, CALLS, PAUSE_SECONDS = 5, 8, 0.05

Predict = Callable[[Mapping[str, torch.Tensor]], np.ndarray]


@dataclass(frozen=True)
class HeldOut:
    """Labelled rows, batched once, so that the view and every file see the same.

    Attributes:
        name: where they are from, for the record.
        batches: inputs and `labels`.
        rows: how many.
        is_language_model: labels are tokens; scored by accuracy of the next (or masked) token and perplexity, the others by
            accuracy, F1 and Matthews correlation.
        is_shifted: labels are scored against the logits one place before.
    """

    name: str
    batches: tuple[Mapping[str, torch.Tensor], ...]
    rows: int
    is_language_model: bool
    is_shifted: bool

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
            ValueError: no rows, or no labels that are classes.
        """
        rows = list(rows)
        quality = QualityPass(model, rows, [ACCURACY], batch_size, collator)
        is_language_model = isinstance(model, (ElasticForCausalLM, ElasticForMaskedLM))
        return cls(name, tuple(quality.batches), len(rows), is_language_model, quality.shifted)

    def score(self, predict: Predict) -> dict[str, float]:
        """Accuracy (0 to 1) and the other metrics of the task.

        Args:
            predict: inputs -> logits, which is `float[batch, classes]` or `float[batch, sequence, classes]`.
        """
        logits, labels = [], []
        loss = 0.0
        for batch in self.batches:
            found = predict({name: tensor for name, tensor in batch.items() if name != "labels"})
            wanted = batch["labels"].numpy()
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


def check_drop(name: str, held_out: HeldOut, view: Mapping, file: Mapping, max_drop: float | None) -> float:
    """Percentage points of accuracy that a file lost against the view that it came from; negative is a gain.

    Raises:
        ParityError: they are more than `max_drop`.
    """
    drop = 100 * (view[ACCURACY] - file[ACCURACY])
    if max_drop is not None and drop > max_drop + 1e-9:
        raise ParityError(
            f"{name}: accuracy on {held_out.rows} rows of {held_out.name} falls from {view[ACCURACY]:.1%} to "
            f"{file[ACCURACY]:.1%}, {drop:.2f} points; max_accuracy_drop is {max_drop:g}"
        )
    return drop


def side_by_side(calls: Mapping[str, Callable[[], object]]) -> dict[str, Latency]:
    """Latencies of calls in different runtimes, in turns.

    Each round times each call alone, in a block of its own: a runtime keeps its idle threads spinning for a while, which would
    slow the next one down on the same cores.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    watch = Watch()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            options = {"repeats": CALLS, "min_rounds": CALLS, "relative_interval": 0, "warmup": 2}
            samples[name] += measure_latency({name: call}, **options)[name].samples_ms
    others = watch.share()
    return {name: Latency.from_samples(taken, others) for name, taken in samples.items()}


def weights_on_disk(folder: Path) -> float:
    """Megabytes (10^6 bytes) of the files of an export that a runtime reads."""
    files = [path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    return sum(path.stat().st_size for path in files) / 1e6


def worth(export: Export, one: Format, folder: Path) -> dict[str, Any]:
    """What `parity.json` says of an export besides parity: size, and with held-out rows accuracy and, where timed, latency.

    Args:
        export: the export in progress.
        one: its format.
        folder: what was written.

    Raises:
        ParityError: more accuracy was lost than is allowed.
    """
    record: dict[str, Any] = {"size_mb": round(weights_on_disk(folder), 3)}
    held_out = export.held_out
    if held_out is None or one.load is None:
        return record
    predict = one.load(export, folder, None)
    scores = held_out.score(predict)
    drop = check_drop(one.name, held_out, export.view_scores, scores, export.max_accuracy_drop)
    record["held_out"] = {
        "name": held_out.name, "rows": held_out.rows, "view": dict(export.view_scores), "file": scores,
        "accuracy_drop_points": round(drop, 4), "max_accuracy_drop": export.max_accuracy_drop,
    }  # fmt: skip
    if not one.is_timed:
        return record
    inputs = held_out.typical_input()
    with torch.inference_mode():
        timed = side_by_side({"view": lambda: export.view(**inputs), "file": lambda: predict(inputs)})
    record["latency"] = {"batch_size": 1, "sequence_length": int(inputs["input_ids"].shape[-1])}
    for name, latency in timed.items():
        record["latency"][f"{name}_ms"] = round(latency.median_ms, 4)
        record["latency"][f"{name}_interval_ms"] = [round(latency.low_ms, 4), round(latency.high_ms, 4)]
    if found := measurement_warnings(list(timed.values())):
        record["latency"]["warnings"] = found
    return record
