"""A standard subnet as a stock checkpoint that transformers 4.57 and 5.x both read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.portable import portable_config
from ..utils.tokenizer import save_tokenizer
from .formats import Export, Format, register
from .outputs import predict


def save_standard(model: PreTrainedModel, directory: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a stock model, its generation config and its tokenizer, for both major versions of transformers.

    The files are complete before the first of them appears in `directory`.

    Args:
        model: a stock model, such as `extract` gives for a standard subnet.
        directory: where to; files of the same names are replaced.
        tokenizer: written next to the model if given.

    Raises:
        ValueError: the model is elastic, or its config cannot be written for both versions.
    """
    if isinstance(model, ElasticPreTrainedModel):
        raise UserError(f"{type(model).__name__} is not a stock model: extract a standard subnet of it first")
    directory = Path(directory)
    unfinished = directory.parent / f".{directory.name}.{os.getpid()}.unfinished"
    unfinished.mkdir(parents=True)
    try:
        model.save_pretrained(unfinished, state_dict=_state_dict(model))
        _write_json(unfinished / "config.json", portable_config(model.config))
        if tokenizer is not None:
            save_tokenizer(tokenizer, unfinished)
        _move(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by name. Untied models have every name in the file: the versions differ in which they tie all the same."""
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        return tensors
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _move(unfinished: Path, directory: Path) -> None:
    """Move the files to where they belong; the config comes last, without it there is no checkpoint."""
    if not directory.exists():
        os.replace(unfinished, directory)
        return
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, directory / path.name)


def write_checkpoint(model: ElasticPreTrainedModel, subnet, folder: Path, tokenizer=None) -> None:
    """Write the extracted size: readable without this package where it is standard."""
    extracted = model.extract(subnet)
    if model.portability_of(subnet) == "standard":
        save_standard(extracted, folder, tokenizer)
        return
    extracted.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def _write(export: Export, folder: Path) -> None:
    write_checkpoint(export.model, export.subnet, folder, export.tokenizer)


def _load(export: Export, folder: Path, threads: int | None = None) -> Callable[[Mapping], np.ndarray]:
    """Read the written checkpoint as a user would. The number of threads is torch's own."""
    standard = export.model.portability_of(export.subnet) == "standard"
    loader = type(export.model.base) if standard else type(export.model)
    model = loader.from_pretrained(folder).eval()
    return lambda inputs: predict(model, inputs)


def _run(export: Export, folder: Path) -> np.ndarray:
    return _load(export, folder)(export.inputs.tensors)


CHECKPOINT = register(
    Format("safetensors", "a checkpoint, stock where the size is standard", write=_write, run=_run, load=_load, in_root=True)
)
