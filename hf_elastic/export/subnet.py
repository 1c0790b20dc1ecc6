"""`export_subnet`: one size in any of the formats, each proven equal to the view that it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticForSequenceClassification, ElasticPreTrainedModel
from ..utils.files import check_output, full_disk_is_one_error, staged
from ..utils.tokenizer import set_padding
from .certificate import certify
from .config import ExportConfig
from .format import Export, Format
from .formats import CHECKPOINT
from .inputs import held_out_inputs, make_inputs
from .outputs import predict
from .scoring import HeldOut


def export_subnet(
    model: ElasticPreTrainedModel,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    formats: Sequence[str] | ExportConfig = ("safetensors",),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] | None = None,
    held_out: HeldOut | None = None,
    calibration: Sequence | None = None,
    overwrite: bool = False,
    **fields,
) -> dict[str, dict]:
    """Write one size of an elastic model.

    `output_dir` gets the checkpoint itself ("safetensors": stock where the subnet is standard, else elastic), and a folder
    for each other format, every one with a `parity.json`. All of it appears, or nothing. A model with a smaller vocabulary is
    exported like any: see `prune_vocabulary`.

    Args:
        model: the supernet.
        subnet: a name, a subnet, or None for the full size.
        output_dir: an empty or new folder, unless `overwrite`.
        formats: some of `FORMATS`; or an `ExportConfig`.
        tokenizer: saved along, and used to make the inputs of the comparison; without it they are random tokens.
        texts: what to compare on, if there is a tokenizer; default: the first batch of `held_out`, or a few of our own.
        held_out: labelled rows; every format is then scored on them and timed next to the view, in its `parity.json`.
        calibration: texts, pairs of texts, or tokenized rows that static int8 takes the ranges of activations from.
        overwrite: replace what is in `output_dir`.
        **fields: further fields of `ExportConfig`, such as `opset`.

    Returns:
        format -> what its `parity.json` says.

    Raises:
        UserError: an unknown format, subnet or value, no format, a folder that is not empty, data that a format needs or does not
            take, or a size that is not standard where that is asked for.
        OSError: the disk is full. Nothing is left then either.
        ParityError: an export differs from the view by more than its tolerance, or loses more accuracy than is allowed.
        MissingPackageError: a format needs an extra that is not installed; the message names it. Nothing has been done then.
    """
    is_config = isinstance(formats, ExportConfig)
    config = replace(formats, **fields) if is_config else ExportConfig(formats=list(formats), **fields)
    config.check_data(calibration, has_held_out=held_out is not None)
    model.resolve(subnet)
    if config.standard_only:
        _check_standard(model, subnet)
    chosen, options = config.chosen, config.options
    for one in chosen:
        one.check(model, options)
    folder = check_output(output_dir, overwrite=overwrite)
    if isinstance(model, ElasticForSequenceClassification):
        set_padding(model.config, tokenizer)
    inputs = held_out_inputs(held_out) if held_out is not None and texts is None else make_inputs(model, tokenizer, texts)
    view = model.view(subnet)
    with full_disk_is_one_error(folder), staged(folder) as staging:
        export = Export(
            view,
            model,
            subnet,
            staging,
            inputs,
            reference=predict(view, inputs.tensors),
            tokenizer=tokenizer,
            options=options,
            calibration=calibration,
            held_out=held_out,
            view_scores=None if held_out is None else held_out.reference_scores or held_out.score_of(view),
            max_accuracy_drop=config.max_accuracy_drop,
        )
        return _write_all(export, chosen)


def _write_all(export: Export, chosen: Sequence[Format]) -> dict[str, dict]:
    # The checkpoint is always written first: the others take their config and tokenizer from it.
    CHECKPOINT.write(export, export.staging)
    records = {}
    for one in chosen:
        folder = one.folder(export.staging)
        if one is not CHECKPOINT:
            _copy_descriptions(export.staging, folder)
            one.write(export, folder)
        records[one.name] = certify(export, one)
        export.written[one.name] = folder
    if CHECKPOINT not in chosen:
        for path in export.staging.iterdir():
            if path.is_file():
                path.unlink()
    return records


def _copy_descriptions(staging: Path, folder: Path) -> None:
    """Config and tokenizer of the checkpoint, beside a format's own files."""
    folder.mkdir()
    for path in staging.iterdir():
        if path.suffix in (".json", ".txt", ".model") and path.name != "parity.json":
            shutil.copy(path, folder / path.name)


def _check_standard(model: ElasticPreTrainedModel, subnet: str | Mapping | None) -> None:
    why = model.why_elastic(subnet)
    if why is not None:
        nearest = json.dumps(model.nearest_standard(subnet).to_dict())
        raise UserError(f"standard_only: this size is not standard: {why}; the nearest standard size is {nearest}")
