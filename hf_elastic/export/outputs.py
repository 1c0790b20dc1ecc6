"""The output of a model that exports are compared by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel


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
