"""Greedy generation of an exported decoder next to torch's: the evidence that its cache works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from ...core.modeling_elastic import ElasticForCausalLM
from ...core.portable import cache_argument
from ...runtimes.decoding import Decoded, decode_greedily, pad_left
from ...utils.lengths import longest_sequence
from ..format import Export
from ..parity import FLOAT32, ParityError

# How many tokens a graph with a cache has to generate like torch.
GENERATED = 32


def is_cached(export: Export) -> bool:
    """Whether the graph is one with a key-value cache: every causal language model's that has one (Transformer-XL has not)."""
    return isinstance(export.model, ElasticForCausalLM) and cache_argument(export.view) is not None


def generation_evidence(export: Export, graph: Path, *, enforce: bool = True) -> dict[str, Any]:
    """Greedy generation of the graph, token by token with its cache, against the view's.

    Args:
        export: the export.
        graph: the file.
        enforce: whether a difference is an error.

    Returns:
        `generated_tokens`, how many of them are the same, and the largest difference of the logits up to the first that is not;
        nothing for models that do not generate.

    Raises:
        ParityError: a token differs that was no tie within the tolerance of float32.
    """
    if not is_cached(export):
        return {}
    from ...runtimes.onnxruntime import OnnxRunner

    batch = {name: tensor.numpy() for name, tensor in export.inputs.tensors.items()}
    longest = longest_sequence(export.model.base)
    count = min(GENERATED, longest // 2)
    ids, mask = pad_left(batch["input_ids"], batch["attention_mask"], longest - count)
    expected = decode_with_torch(export.view, ids, mask, count)
    actual = decode_greedily(OnnxRunner(graph), ids, mask, count)
    record = compare_decoded(expected, actual)
    if record.pop("largest_lost_margin") > FLOAT32.max_relative_difference and enforce:
        raise ParityError(
            f"{graph.parent.name}: only {record['generated_tokens_identical']} of {record['generated_tokens']} generated tokens "
            "are those of the model it came from"
        )
    return record


def decode_with_torch(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray, count: int) -> Decoded:
    """`count` tokens of greedy `generate`, which does not stop early."""
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0, use_cache=True)
    settings.output_logits = settings.return_dict_in_generate = True
    # `generate` takes from the model's own settings what is not set here: its end of text is one.
    own, model.generation_config = model.generation_config, settings
    try:
        with torch.no_grad():
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            output = model.generate(**inputs, generation_config=settings)
    finally:
        model.generation_config = own
    logits = torch.stack(output.logits, 1).float().numpy()
    return Decoded(output.sequences[:, ids.shape[1] :].numpy(), logits)


def compare_decoded(expected: Decoded, actual: Decoded) -> dict[str, Any]:
    """How alike two greedy generations are; after its first difference a row is on another text and is not compared."""
    same = np.cumprod(expected.tokens == actual.tokens, axis=1).astype(bool)
    # A token is chosen from logits that both have before it, so the step of the first difference still counts.
    shared = np.concatenate([np.ones_like(same[:, :1]), same[:, :-1]], axis=1)
    difference = np.abs(expected.logits - actual.logits).max(-1)
    lost = np.take_along_axis(expected.logits, actual.tokens[..., None], -1)[..., 0]
    margin = (expected.logits.max(-1) - lost) / np.abs(expected.logits).max()
    return {
        "generated_tokens": int(same.size),
        "generated_tokens_identical": int(same.sum()),
        "max_generation_difference": float(difference[shared].max()),
        "largest_lost_margin": float(margin[shared].max()),
    }
