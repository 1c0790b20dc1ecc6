"""Does an exported model still compute what the view it came from computes? `parity.json` is the answer, with its evidence."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..utils.files import write_atomically

LIBRARIES = (
    "hf-elastic", "torch", "transformers", "onnx", "onnxruntime", "onnxscript", "optimum", "optimum-onnx", "openvino", "nncf",
)  # fmt: skip


class ParityError(UserError):
    """An export differs from its reference by more than its tolerance allows."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its reference. A limit of `None` is not checked.

    Args:
        max_relative_difference: the largest absolute difference of any value, divided by the largest absolute value of the
            reference. Relative to the whole output because a float32 error scales with the largest terms of a sum, not
            with the result: one value near zero says nothing.
        min_argmax_agreement: share of rows, from 0 to 1, whose largest entry is the same, near ties apart (`NEAR_TIE`). For
            reduced precision, where single values move but decisions should not.
    """

    max_relative_difference: float | None = None
    min_argmax_agreement: float | None = None


FLOAT32 = Tolerance(max_relative_difference=1e-4)
INT8 = Tolerance(min_argmax_agreement=0.9)
# A choice that the reference puts below its own by less than this share of the range of its values is not held against a
# candidate: on a few rows one such coin toss would decide.
NEAR_TIE = 0.05


def compare(
    reference: np.ndarray, candidate: np.ndarray, mask: np.ndarray | None = None, *, several: bool = False
) -> dict[str, float | int]:
    """Measure how far `candidate` is from `reference`.

    Args:
        reference: `float[..., classes]`, e.g. the logits of the view.
        candidate: the same shape, e.g. the logits of the export.
        mask: which leading positions count (nonzero = counts), e.g. an attention mask `[batch, sequence]` with logits
            `[batch, sequence, classes]`, or with start logits `[batch, sequence]`.
        several: whether every value is a decision of its own, that between a label and its absence.

    Returns:
        `max_abs_difference`, `mean_abs_difference` and `largest_reference` in the units of the output,
        `max_relative_difference` (the first divided by the third), `argmax_agreement` (share of rows, 0 to 1, whose largest entry
        is the same), `near_argmax_agreement` (near ties count as the same; see `NEAR_TIE`) and `rows`. One value a row is no
        choice: it agrees where it moves by less than `NEAR_TIE` of the largest.

    Raises:
        ValueError: if the shapes do not fit or nothing is left to compare.
        ParityError: if a compared value is not finite.
    """
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    if reference.shape != candidate.shape or reference.ndim == 0:
        raise UserError(f"the reference has shape {reference.shape} and the candidate {candidate.shape}; they must be the same")
    kept = _kept(reference.shape, mask)
    if not kept.any():
        raise UserError(f"nothing to compare: shape {reference.shape}, {int(kept.sum())} values kept by the mask")
    expected, actual = reference[kept].astype(np.float64), candidate[kept].astype(np.float64)
    infinite = [int((~np.isfinite(values)).sum()) for values in (expected, actual)]
    if any(infinite):
        raise ParityError(f"values are not finite: {infinite[0]} of the reference, {infinite[1]} of the candidate")
    rows = kept.any(-1)
    difference = np.abs(expected - actual)
    largest = float(np.abs(expected).max())
    agreement, near_agreement = _agreement(reference, candidate, kept, several)
    return {
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "largest_reference": largest,
        "max_relative_difference": float(difference.max()) / (largest or 1.0),
        "argmax_agreement": agreement,
        "near_argmax_agreement": near_agreement,
        "rows": int(rows.sum()),
    }


def _agreement(reference: np.ndarray, candidate: np.ndarray, kept: np.ndarray, several: bool) -> tuple[float, float]:
    """Share of decisions that are the same, and with near ties."""
    if reference.shape[-1] == 1:
        moved = np.abs(reference - candidate)[kept]
        same = float(np.mean(moved <= NEAR_TIE * np.abs(reference[kept]).max()))
        return same, same
    if several:
        reference, candidate = (np.stack([values, np.zeros_like(values)], axis=-1) for values in (reference, candidate))
        kept = np.stack([kept, kept], axis=-1)
    rows = kept.any(-1)
    best, chosen = _best(reference, kept)[rows], _best(candidate, kept)[rows]
    near = _below_best(reference[rows], best, chosen) <= NEAR_TIE * np.ptp(reference[kept].astype(np.float64))
    return float(np.mean(best == chosen)), float(np.mean((best == chosen) | near))


def _kept(shape: tuple[int, ...], mask: np.ndarray | None) -> np.ndarray:
    """The mask as `bool` in the full `shape`."""
    if mask is None:
        return np.ones(shape, bool)
    mask = np.asarray(mask).astype(bool)
    if mask.shape != shape[: mask.ndim]:
        raise UserError(f"the mask has shape {mask.shape}; it must be the leading part of {shape}")
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def _best(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept, values, -np.inf).argmax(-1)


def _below_best(values: np.ndarray, best: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How far the chosen entry of each row, `float[rows, classes]`, is below the best one."""
    places = np.arange(len(values))
    return values[places, best] - values[places, chosen]


def violations(comparison: Mapping[str, float], tolerance: Tolerance) -> list[str]:
    """What in a result of `compare` is outside `tolerance`, in words; empty when all is well."""
    found = []
    difference, agreement = comparison["max_relative_difference"], comparison["near_argmax_agreement"]
    if tolerance.max_relative_difference is not None and difference > tolerance.max_relative_difference:
        found.append(
            f"the largest difference is {difference:.2g} of the largest value, allowed {tolerance.max_relative_difference:.2g} "
            f"({comparison['max_abs_difference']:.2g} absolute)"
        )
    if tolerance.min_argmax_agreement is not None and agreement < tolerance.min_argmax_agreement:
        found.append(
            f"the largest entry agrees in {agreement:.3f} of {comparison['rows']} rows, needed {tolerance.min_argmax_agreement}"
        )
    return found


def check_parity(comparison: Mapping[str, float], tolerance: Tolerance) -> None:
    """Raise `ParityError`, which says by how much, if a result of `compare` is outside `tolerance`."""
    found = violations(comparison, tolerance)
    if found:
        raise ParityError("the export differs from the model it came from: " + "; ".join(found))


def write_parity(
    path: Path, export_format: str, comparison: Mapping[str, float], inputs: Any, tolerance: Tolerance
) -> dict[str, Any]:
    """Write `parity.json`. The file appears complete or not at all; a failed comparison is written too, as `passed: false`.

    Args:
        path: the file to write.
        export_format: e.g. `onnx` or `onnx-int8`.
        comparison: the result of `compare`.
        inputs: what was compared on, as JSON: the texts, or the shapes of the arrays.
        tolerance: what `passed` is judged by.

    Returns:
        The record as written: `format`, `passed`, `tolerance`, the numbers of `comparison`, `inputs`, `versions`.
    """
    record = {
        "format": export_format,
        "passed": not violations(comparison, tolerance),
        "tolerance": {name: limit for name, limit in dataclasses.asdict(tolerance).items() if limit is not None},
        **comparison,
        "inputs": inputs,
        "versions": installed_versions(),
    }
    write_atomically(Path(path), json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def installed_versions() -> dict[str, str]:
    """Versions of this package, torch, transformers, and what writes and runs files, where installed."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
