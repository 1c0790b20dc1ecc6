"""`export_subnet`: one size in any of the formats, each proven equal to the view that it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticForSequenceClassification, ElasticPreTrainedModel
from ..utils.folders import check_output, filled
from ..utils.tokenizer import set_padding
from .certificate import certify
from .config import ExportConfig
from .format import HUB, HUB_FOLDER, Export, Format
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
        check_standard(model, subnet)
    chosen, options = config.chosen, config.options
    for one in chosen:
        one.check(model, options)
    where = {"overwrite": overwrite, "inputs": _sources(model, tokenizer)}
    check_output(output_dir, **where)
    if isinstance(model, ElasticForSequenceClassification):
        set_padding(model.config, tokenizer)
    inputs = held_out_inputs(held_out) if held_out is not None and texts is None else make_inputs(model, tokenizer, texts)
    with filled(output_dir, **where) as staging:
        view = exact_view(model, subnet)
        view_scores = full_scores = None
        if held_out is not None:
            view_scores = held_out.reference_scores or held_out.score_of(view)
            is_full = model.resolve(subnet) == model.resolve(None)
            full_scores = held_out.full_scores or (view_scores if is_full else held_out.score_of(model.view()))
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
            view_scores=view_scores,
            full_scores=full_scores,
            max_accuracy_drop=config.max_accuracy_drop,
        )
        return _write_all(export, chosen, config.layout)


def exact_view(model: ElasticPreTrainedModel, subnet: str | Mapping | None) -> PreTrainedModel:
    """A view in float32 on the CPU, where formats are written and judged; a copy where the model is of another kind or place.

    Half precision is exact in float32, whose sums depend less on the kernel than its own do.
    """
    view = model.view(subnet)
    if all(weight.dtype is torch.float32 and weight.device.type == "cpu" for weight in view.parameters()):
        return view
    # Made anew, as readers of the checkpoint do: `model.to(dtype)` has rounded the frequencies of rotary positions.
    kind, config = model.standalone(subnet)
    exact = kind.from_pretrained(None, config=config, state_dict=view.state_dict(), dtype=torch.float32).eval()
    return exact.base if isinstance(exact, ElasticPreTrainedModel) else exact


def _sources(model: ElasticPreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, object]:
    """Where a model and its tokenizer were read from: files that an export must not replace."""
    read = (model, model.base, tokenizer)
    return {f"the folder of the {type(one).__name__}": one.name_or_path for one in read if one is not None and one.name_or_path}


def _write_all(export: Export, chosen: Sequence[Format], layout: str) -> dict[str, dict]:
    # The checkpoint is always written first: the others take all but the weights from it.
    CHECKPOINT.write(export, export.staging)
    files = sorted(path for path in export.staging.rglob("*") if path.is_file())
    descriptions = [path for path in files if path.parent != export.staging or not is_weights(path)]
    records = {}
    for one in chosen:
        folder = one.folder(export.staging)
        if one is not CHECKPOINT:
            for path in descriptions:
                target = folder / path.relative_to(export.staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            one.write(export, folder)
        records[one.name] = certify(export, one)
        export.written[one.name] = folder
    if layout == HUB:
        _lay_out_as_on_the_hub(export.staging, [one for one in chosen if one is not CHECKPOINT])
    if CHECKPOINT not in chosen:
        for name in {path.relative_to(export.staging).parts[0] for path in files if layout != HUB or path not in descriptions}:
            path = export.staging / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return records


def _lay_out_as_on_the_hub(staging: Path, graphs: Sequence[Format]) -> None:
    """Move all graphs and their certificates to one folder; what describes them is in the root."""
    together = staging / "together"  # a format may have been written to the folder that they move to
    together.mkdir()
    for one in graphs:
        folder, suffix = one.folder(staging), one.hub_name.removeprefix("model")
        (folder / "parity.json").rename(together / f"parity{suffix}.json")
        for path in folder.glob("model.onnx*"):
            if path.stat().st_size:  # the empty one is for another loader
                path.rename(together / f"{one.hub_name}{path.name.removeprefix('model')}")
        shutil.rmtree(folder)
    together.rename(staging / HUB_FOLDER)


def is_weights(path: Path) -> bool:
    """Whether a file of a checkpoint is its weights, or names the files that they are in."""
    return path.name.startswith("model") and path.name.endswith((".safetensors", ".safetensors.index.json"))


def check_standard(model: ElasticPreTrainedModel, subnet: str | Mapping | None) -> None:
    """Raise UserError, which names the nearest standard size, unless a size is standard."""
    why = model.why_elastic(subnet)
    if why is not None:
        nearest = json.dumps(model.nearest_standard(subnet).to_dict())
        raise UserError(f"this size is not standard, as is asked for: {why}; the nearest standard size is {nearest}")
