"""`export_subnet`: one size in any of the formats, each proven equal to the view that it came from."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..utils.files import check_output, full_disk_is_one_error, staged
from .checkpoint import CHECKPOINT
from .formats import Export, Format, Inputs, longest_sequence, select
from .outputs import predict
from .parity import ParityError, compare, violations, write_parity
from .scoring import HeldOut, worth
from .vocabulary.pruning import prune_and_compare, read_vocabulary_texts

# Compared where the caller has no text of its own: of several lengths, so that padding is exercised.
TEXTS = (
    "Return a new iterator over the keys of the mapping.",
    "The quick brown fox jumps over the lazy dog, and then it rests for a while in the shade of an old tree.",
    "Yes.",
    "A checkpoint that was cut to size must still compute what it did inside the larger one.",
)


def export_subnet(
    model: ElasticPreTrainedModel,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    formats: Sequence[str] = ("safetensors",),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] | None = None,
    held_out: HeldOut | Callable[[ElasticPreTrainedModel, PreTrainedTokenizerBase | None], HeldOut] | None = None,
    max_accuracy_drop: float | None = None,
    overwrite: bool = False,
    standard_only: bool = False,
    keep_vocabulary_of: str | Path | None = None,
    **options,
) -> dict[str, dict]:
    """Write one size of an elastic model.

    `output_dir` gets the checkpoint itself ("safetensors": stock where the subnet is standard, else elastic), and a folder
    for each other format, every one with a `parity.json`. All of it appears, or nothing.

    Args:
        model: the supernet.
        subnet: a name, a subnet, or None for the full size.
        output_dir: an empty or new folder, unless `overwrite`.
        formats: some of `FORMATS`.
        tokenizer: saved along, and used to make the inputs of the comparison; without it they are random tokens.
        texts: what to compare on, if there is a tokenizer; default: the first batch of `held_out`, or a few of our own.
        held_out: labelled rows; every format is then scored on them and timed next to the view, in its `parity.json`. Or a
            function of the model and the tokenizer that tokenizes such rows, which is what `keep_vocabulary_of` needs.
        max_accuracy_drop: most percentage points of accuracy that a format may lose on them; None is no limit. What pruning the
            vocabulary costs a classifier counts; the tokens of a language model are others after it, so its score starts there.
        overwrite: replace what is in `output_dir`.
        standard_only: refuse a size that plain transformers cannot load.
        keep_vocabulary_of: a text file with one text per line (`.gz` too): tokens that it does not need are dropped from the
            tokenizer and the model, see `prune_vocabulary`; `vocabulary.json` says what that saved.
        **options: options of the formats, such as `opset` of "onnx".

    Returns:
        format -> what its `parity.json` says.

    Raises:
        ValueError: an unknown format, subnet or option, no format, a folder that is not empty, a size that is not standard where
            that is asked for, a vocabulary that cannot be pruned, or one that is to be pruned under rows tokenized before.
        OSError: the disk is full. Nothing is left then either.
        ParityError: an export differs from the view by more than its tolerance, or loses more accuracy than is allowed.
        ImportError: a format needs an extra that is not installed; the message names it. Nothing has been done then.
    """
    chosen = select(formats, options)
    check_limit(max_accuracy_drop, held_out is not None, options)
    model.resolve(subnet)
    if standard_only:
        _check_standard(model, subnet)
    texts_to_keep = None
    if keep_vocabulary_of is not None:
        _check_no_ids(held_out, options.get("calibration"))
        texts_to_keep = read_vocabulary_texts(keep_vocabulary_of, tokenizer)
    for one in chosen:
        if one.check is not None:
            one.check(model, subnet, options)
    folder = check_output(output_dir, overwrite=overwrite)
    read_rows, scores, pruned = held_out, None, None
    if callable(read_rows):
        held_out = read_rows(model, tokenizer)
    if texts_to_keep is not None:
        if held_out is not None and not held_out.is_language_model:
            scores = _scores(model.view(subnet), held_out)
        model, tokenizer, pruned = prune_and_compare(model, subnet, tokenizer, texts_to_keep)
        if held_out is not None:
            held_out = read_rows(model, tokenizer)
    inputs = _held_out_inputs(held_out) if held_out is not None and texts is None else make_inputs(model, tokenizer, texts)
    view = model.view(subnet)
    reference = predict(view, inputs.tensors)
    records = {}
    with full_disk_is_one_error(folder), staged(folder) as staging:
        export = Export(view, model, subnet, staging, inputs, reference, tokenizer, options)
        if held_out is not None:
            scores = _scores(view, held_out) if scores is None else scores
            export = replace(export, held_out=held_out, view_scores=scores, max_accuracy_drop=max_accuracy_drop)
        # The checkpoint is always written first: the others take their config and tokenizer from it.
        CHECKPOINT.write(export, staging)
        for one in chosen:
            if one is not CHECKPOINT:
                _write(export, one)
            records[one.name] = _certify(export, one)
            export.written[one.name] = one.folder(staging)
        if CHECKPOINT not in chosen:
            _keep_only_folders(staging)
        if pruned is not None:
            (staging / "vocabulary.json").write_text(json.dumps(pruned, indent=2) + "\n", encoding="utf-8")
    return records


def check_limit(max_accuracy_drop: float | None, has_held_out: bool, options: Mapping) -> None:
    """Refuse a limit on the loss of accuracy that cannot be kept, and what only makes sense with one.

    Raises:
        ValueError: it is negative, or there are no rows to find the accuracy on; or `fallback` without a limit.
    """
    if max_accuracy_drop is None:
        if options.get("fallback") is not None:
            raise UserError("fallback: what exceeds max_accuracy_drop stays in float, so it needs max_accuracy_drop")
        return
    if not max_accuracy_drop >= 0:
        raise UserError(f"max_accuracy_drop must be 0 or more percentage points, got {max_accuracy_drop!r}")
    if not has_held_out:
        raise UserError("max_accuracy_drop needs labelled rows to find the accuracy on: give a data set")


def _check_no_ids(held_out: HeldOut | Callable | None, calibration: Any) -> None:
    """Refuse rows that were tokenized before the vocabulary is pruned: their ids would be those of other tokens."""
    tokenized = isinstance(calibration, (list, tuple)) and any(isinstance(row, Mapping) for row in calibration)
    if isinstance(held_out, HeldOut) or tokenized:
        what = "texts as calibration" if tokenized else "held_out as a function of the model and the tokenizer"
        raise UserError(f"keep_vocabulary_of: the rows are tokenized with the vocabulary that it changes; give {what}")


def _scores(view: PreTrainedModel, held_out: HeldOut) -> dict[str, float]:
    return held_out.score(lambda batch: predict(view, batch))


def _check_standard(model: ElasticPreTrainedModel, subnet: str | Mapping | None) -> None:
    why = model.why_elastic(subnet)
    if why is not None:
        nearest = json.dumps(model.nearest_standard(subnet).to_dict())
        raise UserError(f"standard_only: this size is not standard: {why}; the nearest standard size is {nearest}")


def _held_out_inputs(held_out: HeldOut) -> Inputs:
    """Rows like those that the model is for: on a few of any other kind, int8 can decide a near tie the other way."""
    tensors = {name: tensor for name, tensor in held_out.batches[0].items() if name != "labels"}
    return Inputs(tensors, {"rows_of": held_out.name, **{name: list(tensor.shape) for name, tensor in tensors.items()}})


def make_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str] | None = None) -> Inputs:
    """A padded batch of the texts (default: `TEXTS`), or of random tokens."""
    if tokenizer is None or tokenizer.pad_token is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (len(TEXTS), 16), generator=generator)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Inputs(tensors, {name: list(tensor.shape) for name, tensor in tensors.items()})
    longest = min(128, longest_sequence(model.base))
    # On the right, where padding moves no token: a causal model called without positions counts it in.
    settings = {"padding": True, "padding_side": "right", "truncation": True, "max_length": longest}
    batch = tokenizer(list(texts or TEXTS), return_tensors="pt", **settings)
    taken = inspect.signature(model.base.forward).parameters
    known = ("input_ids", "attention_mask", "token_type_ids")
    accepted = {name: tensor for name, tensor in batch.items() if name in known and name in taken}
    return Inputs(accepted, list(texts or TEXTS))


def _write(export: Export, one: Format) -> None:
    folder = one.folder(export.staging)
    folder.mkdir()
    for path in export.staging.iterdir():
        if path.suffix in (".json", ".txt", ".model") and path.name != "parity.json":
            shutil.copy(path, folder / path.name)
    one.write(export, folder)


def _certify(export: Export, one: Format) -> dict:
    """Compare, write `parity.json`, and refuse what is over the tolerance."""
    folder, reference = one.folder(export.staging), export.reference
    mask = export.inputs.tensors["attention_mask"].numpy()
    mask = mask if mask.shape == reference.shape[:2] else None  # a prediction per sequence has nothing to mask
    comparison = compare(reference, one.run(export, folder), mask)
    limits = one.limits(export.options)
    found = violations(comparison, limits)
    if found:
        raise ParityError(f"{one.name}: the export differs from the model it came from: {'; '.join(found)}")
    evidence = one.evidence(export, folder) if one.evidence is not None else {}
    evidence = {**evidence, **worth(export, one, folder)}
    return write_parity(folder / "parity.json", one.name, {**comparison, **evidence}, export.inputs.record, limits)


def _keep_only_folders(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_file():
            path.unlink()
