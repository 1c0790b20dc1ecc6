"""The certificate of an export, `parity.json`: equal to its view, and what it is worth in accuracy, latency and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.head import MULTI
from . import outputs
from .format import Export, Format
from .parity import ParityError, compare, violations, write_parity
from .scoring import check_drop, side_by_side

WEIGHT_SUFFIXES = (".onnx", ".onnx_data", ".xml", ".bin", ".safetensors", ".engine", ".plan")


def certify(export: Export, one: Format) -> dict[str, Any]:
    """Compare what a format has written with the view, score it, and write `parity.json`.

    Returns:
        What `parity.json` says.

    Raises:
        ParityError: it is over the tolerance, or loses more accuracy than is allowed.
    """
    folder, reference = one.folder(export.staging), export.reference
    mask = export.inputs.tensors["attention_mask"].numpy()
    # A prediction per sequence has nothing to mask, even if it has as many classes as the sequence has tokens.
    mask = mask if reference.ndim == 3 and mask.shape == reference.shape[:2] else None
    comparison = compare(reference, one.run(export, folder), mask, several=export.model.config.problem_type == MULTI)
    limits = one.tolerance(export.options)
    found = violations(comparison, limits)
    if found:
        raise ParityError(f"{one.name}: the export differs from the model it came from: {'; '.join(found)}")
    found = {**comparison, **one.evidence(export, folder), **worth(export, one, folder)}
    return write_parity(folder / "parity.json", one.name, found, export.inputs.record, limits)


def worth(export: Export, one: Format, folder: Path) -> dict[str, Any]:
    """What `parity.json` says of an export besides parity: size, and with held-out rows accuracy and, where timed, latency.

    Raises:
        ParityError: more accuracy was lost than is allowed.
    """
    record: dict[str, Any] = {"size_mb": round(weights_on_disk(folder), 3)}
    held_out = export.held_out
    if held_out is None:
        return record
    predict = one.load(export, folder)
    scores = held_out.score(predict)
    drop = check_drop(one.name, held_out, export.view_scores, scores, export.max_accuracy_drop)
    record["held_out"] = {
        "name": held_out.name, "rows": held_out.rows,
        "full": dict(export.full_scores), "view": dict(export.view_scores), "file": scores,
        "accuracy_drop_points": None if drop is None else round(drop, 4), "max_accuracy_drop": export.max_accuracy_drop,
    }  # fmt: skip
    if one.is_timed:
        inputs = held_out.typical_input()
        # As the user has them, not in float32.
        full, view = export.model.view(), export.model.view(export.subnet)
        calls = {"full": lambda: outputs.predict(full, inputs), "view": lambda: outputs.predict(view, inputs)}
        timed = side_by_side({**calls, "file": lambda: predict(inputs)})
        record["latency"] = {"batch_size": 1, "sequence_length": int(inputs["input_ids"].shape[-1]), **timed}
    return record


def weights_on_disk(folder: Path) -> float:
    """Megabytes (10^6 bytes) of the files of an export that a runtime reads."""
    files = [path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    return sum(path.stat().st_size for path in files) / 1e6
