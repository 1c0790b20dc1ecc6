"""The checkpoint as the first of the formats: a standard subnet as a stock one that transformers 4.57 and 5.x both read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.portable import portable_config
from ..utils.folders import added
from ..utils.lengths import longest_sequence
from ..utils.options import check_dtype
from ..utils.sentence_transformers import copy_sentence_modules
from ..utils.tokenizer import save_tokenizer
from .format import Export, Format, Predict
from .outputs import predict
from .parity import FLOAT32, ParityError, Tolerance

# How far the output may move where weights are rounded.
ROUNDED = {"float16": Tolerance(max_relative_difference=1e-2), "bfloat16": Tolerance(max_relative_difference=5e-2)}


class CheckpointFormat(Format):
    """What `from_pretrained` reads: without this package where the size is standard."""

    name = "safetensors"
    description = "a checkpoint, stock where the size is standard"
    in_root = True
    options = frozenset({"dtype"})

    def write(self, export: Export, folder: Path) -> None:
        """Write the extracted size, and its tokenizer."""
        extracted = export.model.extract(export.subnet).to(_asked(export))
        if export.model.portability_of(export.subnet) == "standard":
            save_standard(extracted, folder, export.tokenizer)
        else:
            extracted.save_pretrained(folder)
            extracted = extracted.base
            if export.tokenizer is not None:
                save_tokenizer(export.tokenizer, folder, longest_sequence(extracted))
        copy_sentence_modules(export.model, folder, extracted.config)

    def load(self, export: Export, folder: Path) -> Predict:
        """The written checkpoint, as a user would read it."""
        model = self._read(export, folder)
        return lambda inputs: predict(model, inputs)

    def run(self, export: Export, folder: Path) -> np.ndarray:
        """What the written weights compute in float32."""
        return predict(self._read(export, folder, torch.float32), export.inputs.tensors)

    def _read(self, export: Export, folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
        standard = export.model.portability_of(export.subnet) == "standard"
        loader = type(export.model.base) if standard else type(export.model)
        return loader.from_pretrained(folder, dtype=dtype).eval()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what weights cannot be written in."""
        check_dtype(options.get("dtype"))

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Wider where weights are rounded."""
        return ROUNDED.get(options.get("dtype"), FLOAT32)

    def evidence(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """That all weights are those of the view, bit by bit, rounded where another dtype was asked for."""
        model = self._read(export, folder)
        written = dict(model.named_parameters(remove_duplicate=False))
        for name, weight in export.model.view(export.subnet).named_parameters(remove_duplicate=False):
            wanted = weight.cpu().to(_asked(export))
            if not torch.equal(wanted.isfinite(), weight.cpu().isfinite()):
                raise ParityError(f"{self.name}: {name} has values that {wanted.dtype} cannot hold")
            found = written.get(name)
            if found is None or found.dtype != wanted.dtype or not torch.equal(found, wanted):
                is_there = "missing" if found is None else f"another one, of {found.dtype}"
                raise ParityError(f"{self.name}: {name} is {wanted.dtype} in the model and {is_there} in the file")
        return {"dtype": str(model.dtype).removeprefix("torch."), "weights_identical": True}


def _asked(export: Export) -> torch.dtype | None:
    name = export.options.get("dtype")
    return None if name is None else getattr(torch, name)


def save_standard(model: PreTrainedModel, directory: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a stock model, its generation config and its tokenizer, for both major versions of transformers.

    The files are complete before the first of them appears in `directory`; the config comes last, without it there is no
    checkpoint.

    Args:
        model: a stock model, such as `extract` gives for a standard subnet.
        directory: where to; files of the same names are replaced.
        tokenizer: written next to the model if given.

    Raises:
        UserError: the model is elastic, or its config cannot be written for both versions.
    """
    if isinstance(model, ElasticPreTrainedModel):
        raise UserError(f"{type(model).__name__} is not a stock model: extract a standard subnet of it first")
    with added(directory) as folder:
        model.save_pretrained(folder, state_dict=_state_dict(model))  # it also writes the class into the config
        values = portable_config(model.config)
        (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder, longest_sequence(model))


def save_elastic(model: ElasticPreTrainedModel, directory: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write an elastic model with all that goes along: its tokenizer, and what sentence-transformers keeps beside it.

    Args:
        model: the supernet.
        directory: where to.
        tokenizer: written next to the model if given.

    Raises:
        UserError: a module of sentence-transformers does not fit the space.
    """
    model.save_pretrained(directory)
    if tokenizer is not None:
        save_tokenizer(tokenizer, directory, longest_sequence(model.base))
    copy_sentence_modules(model, Path(directory))


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
