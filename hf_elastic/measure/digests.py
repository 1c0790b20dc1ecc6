"""Short hashes of what the results of a search depend on."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch

from ..core.modeling_elastic import ElasticPreTrainedModel

SAMPLES_PER_TENSOR = 256
# Set by whoever loads or saves a config; they do not change what the model computes.
INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


def architecture_digest(model: ElasticPreTrainedModel) -> str:
    """A short hash of everything about a model that its sizes and their speed depend on: not its weights."""
    config = {key: value for key, value in model.config.base_config.to_dict().items() if key not in INCIDENTAL}
    facts = [type(model).__name__, config, model.config.layer_order, model.config.frozen, str(model.dtype)]
    facts += [model.config.grown] if model.config.grown else []
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_digest(model: ElasticPreTrainedModel) -> str:
    """A short hash of the architecture and of a sample of every weight, which any training step changes."""
    digest = hashlib.sha256(architecture_digest(model).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        # As float64 bytes: numpy has no bfloat16.
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)].to("cpu", torch.float64)
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def batches_digest(batches: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """A short hash of everything a model is evaluated on."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            tensor = batch[name].cpu()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
