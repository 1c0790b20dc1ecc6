"""`export_subnet`: one size as a checkpoint, as ONNX and as int8 ONNX, each proven equal to the view that it came from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import check_output, staged
from ..modeling_elastic import ElasticPreTrainedModel
from .checkpoint import save_standard
from .parity import ParityError, compare, default_tolerance, violations, write_parity

FORMATS = ("safetensors", "onnx", "onnx-int8")

# Compared where the caller has no text of its own: of several lengths, so that padding is exercised.
TEXTS = (
    "Return a new iterator over the keys of the mapping.",
    "The quick brown fox jumps over the lazy dog, and then it rests for a while in the shade of an old tree.",
    "Yes.",
    "A checkpoint that was cut to size must still compute what it did inside the larger one.",
)


@dataclass(frozen=True)
class Inputs:
    """What an export is compared on.

    Attributes:
        tensors: a padded batch, as the model takes it.
        record: the same for `parity.json`: texts, or shapes.
    """

    tensors: dict[str, torch.Tensor]
    record: list | dict


def export_subnet(
    model: ElasticPreTrainedModel,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    formats: Sequence[str] = ("safetensors",),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] = TEXTS,
    overwrite: bool = False,
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
        overwrite: replace what is in `output_dir`.

    Returns:
        format -> what its `parity.json` says.

    Raises:
        ValueError: an unknown format or subnet, no format, or a folder that is not empty.
        ParityError: an export differs from the view by more than its tolerance.
        ImportError: a format needs an extra that is not installed; the message names it.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"formats: {', '.join(unknown) or 'none given'}; known: {', '.join(FORMATS)}")
    model.resolve(subnet)
    folder = check_output(output_dir, overwrite=overwrite)
    inputs = make_inputs(model, tokenizer, texts)
    view = model.view(subnet)
    reference = predict(view, inputs.tensors)
    records = {}
    with staged(folder) as staging:
        # The checkpoint is always written first: the others take their config and tokenizer from it.
        write_checkpoint(model, subnet, staging, tokenizer)
        if "safetensors" in formats:
            reloaded = predict(_reload(model, subnet, staging), inputs.tensors)
            records["safetensors"] = _certify(staging, "safetensors", reference, reloaded, inputs)
        for name in ("onnx", "onnx-int8"):
            if name in formats:
                records[name] = _export_onnx(view, staging, name, reference, inputs)
        if "safetensors" not in formats:
            _keep_only_folders(staging)
    return records


def write_checkpoint(model: ElasticPreTrainedModel, subnet, folder: Path, tokenizer=None) -> None:
    """Write the extracted size: readable without this package where it is standard."""
    extracted = model.extract(subnet)
    if model.portability_of(subnet) == "standard":
        save_standard(extracted, folder, tokenizer)
        return
    extracted.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


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


@torch.no_grad()
def predict(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """The main output of a model, float32: logits, start and end logits, or hidden states."""
    accepted = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    return _main_output({name: value for name, value in model(**accepted).items() if isinstance(value, torch.Tensor)})


def _main_output(outputs: Mapping) -> np.ndarray:
    if "start_logits" in outputs:
        arrays = [np.asarray(outputs[name]) for name in ("start_logits", "end_logits")]
        return np.stack(arrays, axis=1)
    name = "logits" if "logits" in outputs else "last_hidden_state"
    value = outputs[name]
    return value.float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _reload(model: ElasticPreTrainedModel, subnet, folder: Path) -> PreTrainedModel:
    """Read the written checkpoint as a user would."""
    if model.portability_of(subnet) == "standard":
        return type(model.base).from_pretrained(folder).eval()
    return type(model).from_pretrained(folder).eval()


def _export_onnx(view: PreTrainedModel, staging: Path, name: str, reference: np.ndarray, inputs: Inputs) -> dict:
    from .onnx import OnnxRunner, export_onnx, quantize_onnx

    folder = staging / name
    folder.mkdir()
    plain = staging / "onnx" / "model.onnx"
    if name == "onnx":
        export_onnx(view, inputs.tensors, plain)
    else:
        source = plain if plain.exists() else export_onnx(view, inputs.tensors, folder / "float.onnx")
        quantize_onnx(source, folder / "model.onnx")
        if source != plain:
            source.unlink()
    for path in staging.iterdir():
        if path.suffix in (".json", ".txt", ".model") and path.name != "parity.json":
            shutil.copy(path, folder / path.name)
    candidate = _main_output(OnnxRunner(folder / "model.onnx")(inputs.tensors))
    return _certify(folder, name, reference, candidate, inputs)


def _certify(folder: Path, name: str, reference: np.ndarray, candidate: np.ndarray, inputs: Inputs) -> dict:
    """Compare, write `parity.json`, and refuse what is over the tolerance."""
    mask = inputs.tensors["attention_mask"].numpy()
    mask = mask if mask.shape == reference.shape[:2] else None  # a prediction per sequence has nothing to mask
    comparison = compare(reference, candidate, mask)
    record = write_parity(folder / "parity.json", name, comparison, inputs.record)
    if not record["passed"]:
        found = "; ".join(violations(comparison, default_tolerance(name)))
        raise ParityError(f"{name}: the export differs from the model it came from: {found}")
    return record


def _keep_only_folders(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_file():
            path.unlink()
