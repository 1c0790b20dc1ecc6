"""Calibration data: unlabelled inputs that the ranges of activations are taken from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..core.errors import UserError
from ..utils.lengths import check_length, longest_sequence
from .format import Export
from .inputs import LONGEST, NAMES


def check_calibration(calibration: Any) -> None:
    """Check calibration data: texts, pairs of texts, or tokenized rows.

    Raises:
        ValueError: there are none, or one is neither text nor a row with `input_ids`; names the row and its columns.
    """
    if isinstance(calibration, (str, Mapping)) or not isinstance(calibration, Sequence) or not len(calibration):
        raise UserError(f"calibration must be a list of texts or of tokenized rows, at least one; got {calibration!r:.100}")
    for place, row in enumerate(calibration):
        if isinstance(row, Mapping):
            if "input_ids" not in row:
                raise UserError(
                    f"calibration: row {place} has the columns {', '.join(map(str, row))}; a tokenized row needs input_ids "
                    f"(and may have {', '.join(NAMES[1:])}), or give texts"
                )
        elif not (isinstance(row, str) or _is_pair(row)):
            raise UserError(f"calibration: row {place} is {row!r:.100}; it must be a text, two texts, or a tokenized row")


def _is_pair(row: Any) -> bool:
    return isinstance(row, (tuple, list)) and len(row) == 2 and all(isinstance(text, str) for text in row)


def calibration_rows(export: Export) -> list[dict[str, torch.Tensor]]:
    """The calibration data of an export as batches of one, `int64[1, sequence]` each; without any, what it is compared on.

    Raises:
        ValueError: they are texts, and the export has no tokenizer; or a row is longer than the model's input.
    """
    if export.calibration is None:
        batch = export.inputs.tensors
        return [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(len(batch["input_ids"]))]
    longest = min(LONGEST, longest_sequence(export.model.base))
    return [_tensors(row, export, longest) for row in export.calibration]


def _tensors(row: Any, export: Export, longest: int) -> dict[str, torch.Tensor]:
    if isinstance(row, Mapping):
        tensors = {name: torch.as_tensor(row[name])[None] for name in NAMES if name in row}
        check_length("calibration", tensors["input_ids"].shape[-1], export.model.base)
        return {"attention_mask": torch.ones_like(tensors["input_ids"]), **tensors}
    if export.tokenizer is None:
        raise UserError("calibration: texts need a tokenizer; give one, or tokenized rows")
    texts = (row,) if isinstance(row, str) else tuple(row)
    tokens = export.tokenizer(*texts, truncation=True, max_length=longest, return_tensors="pt")
    return {name: tokens[name] for name in NAMES if name in tokens}
