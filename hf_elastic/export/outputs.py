"""The output of a model that exports are compared by, and the checkpoint as the first of the formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..modeling_elastic import ElasticPreTrainedModel
from ..portable_tokenizer import save_tokenizer
from .checkpoint import save_standard
from .formats import Export, Format, register


@torch.no_grad()
def predict(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """The main output of a model, float32: logits, start and end logits, or hidden states."""
    accepted = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    return main_output({name: value for name, value in model(**accepted).items() if isinstance(value, torch.Tensor)})


def main_output(outputs: Mapping) -> np.ndarray:
    """The same of outputs by name, tensors or arrays."""
    if "start_logits" in outputs:
        arrays = [np.asarray(outputs[name]) for name in ("start_logits", "end_logits")]
        return np.stack(arrays, axis=1)
    name = "logits" if "logits" in outputs else "last_hidden_state"
    value = outputs[name]
    return value.float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


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
