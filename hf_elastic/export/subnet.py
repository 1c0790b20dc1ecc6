"""`export_subnet`: one size in any of the formats, each proven equal to the view that it came from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import check_output, staged
from ..modeling_elastic import ElasticPreTrainedModel
from .formats import Export, Format, Inputs, select
from .held_out import HeldOut, worth
from .outputs import CHECKPOINT, predict
from .parity import ParityError, compare, violations, write_parity

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
    texts: Sequence[str] = TEXTS,
    held_out: HeldOut | None = None,
    max_accuracy_drop: float | None = None,
    overwrite: bool = False,
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
        texts: what to compare on, if there is a tokenizer.
        held_out: labelled rows; every format is then scored on them and timed next to the view, in its `parity.json`.
        max_accuracy_drop: most percentage points of accuracy that a format may lose on them; None is no limit.
        overwrite: replace what is in `output_dir`.
        **options: options of the formats, such as `opset` of "onnx".

    Returns:
        format -> what its `parity.json` says.

    Raises:
        ValueError: an unknown format, subnet or option, no format, or a folder that is not empty.
        ParityError: an export differs from the view by more than its tolerance, or loses more accuracy than is allowed.
        ImportError: a format needs an extra that is not installed; the message names it. Nothing has been done then.
    """
    chosen = select(formats, options)
    check_limit(max_accuracy_drop, held_out is not None, options)
    model.resolve(subnet)
    for one in chosen:
        if one.check is not None:
            one.check(model, subnet, options)
    folder = check_output(output_dir, overwrite=overwrite)
    inputs = make_inputs(model, tokenizer, texts)
    view = model.view(subnet)
    reference = predict(view, inputs.tensors)
    records = {}
    with staged(folder) as staging:
        export = Export(view, model, subnet, staging, inputs, reference, tokenizer, options)
        if held_out is not None:
            scores = held_out.score(lambda batch: predict(view, batch))
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
    return records


def check_limit(max_accuracy_drop: float | None, has_held_out: bool, options: Mapping) -> None:
    """Refuse a limit on the loss of accuracy that cannot be kept, and what only makes sense with one.

    Raises:
        ValueError: it is negative, or there are no rows to find the accuracy on; or `fallback` without a limit.
    """
    if max_accuracy_drop is None:
        if options.get("fallback") is not None:
            raise ValueError("fallback: what exceeds max_accuracy_drop stays in float, so it needs max_accuracy_drop")
        return
    if not max_accuracy_drop >= 0:
        raise ValueError(f"max_accuracy_drop must be 0 or more percentage points, got {max_accuracy_drop!r}")
    if not has_held_out:
        raise ValueError("max_accuracy_drop needs labelled rows to find the accuracy on: give a data set")


def make_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str]) -> Inputs:
    """A padded batch of the texts, or of random tokens."""
    if tokenizer is None or tokenizer.pad_token is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (len(TEXTS), 16), generator=generator)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Inputs(tensors, {name: list(tensor.shape) for name, tensor in tensors.items()})
    longest = min(128, model.config.max_position_embeddings)
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    accepted = {name: tensor for name, tensor in batch.items() if name in ("input_ids", "attention_mask", "token_type_ids")}
    return Inputs(accepted, list(texts))


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
