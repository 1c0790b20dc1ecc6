"""The checkpoint as the first of the formats: a standard subnet as a stock one that transformers 4.57 and 5.x both read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.portable import portable_config
from ..utils.folders import added
from ..utils.sentence_transformers import copy_sentence_modules
from ..utils.tokenizer import save_tokenizer
from .format import Export, Format, Predict
from .inputs import longest_sequence
from .outputs import predict


class CheckpointFormat(Format):
    """What `from_pretrained` reads: without this package where the size is standard."""

    name = "safetensors"
    description = "a checkpoint, stock where the size is standard"
    in_root = True

    def write(self, export: Export, folder: Path) -> None:
        """Write the extracted size, and its tokenizer."""
        extracted = export.model.extract(export.subnet)
        if export.model.portability_of(export.subnet) == "standard":
            save_standard(extracted, folder, export.tokenizer)
        else:
            extracted.save_pretrained(folder)
            extracted = extracted.base
            if export.tokenizer is not None:
                save_tokenizer(export.tokenizer, folder, longest_sequence(extracted))
        copy_sentence_modules(export.model, folder, extracted.config)

    def load(self, export: Export, folder: Path) -> Predict:
        """Read the written checkpoint as a user would."""
        standard = export.model.portability_of(export.subnet) == "standard"
        loader = type(export.model.base) if standard else type(export.model)
        model = loader.from_pretrained(folder).eval()
        return lambda inputs: predict(model, inputs)


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
