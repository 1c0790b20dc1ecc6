"""ONNX as a format of `export_subnet`."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from ...core.modeling_elastic import ElasticForCausalLM, ElasticPreTrainedModel
from ...graphs.exporters import EXTRA, OPSET, PACKAGES, check_opset
from ...runtimes.decoding import Decoded, decode_greedily, pad_left
from ..formats import Export, Format, longest_sequence, register
from ..outputs import main_output
from ..parity import FLOAT32, ParityError, Tolerance

GRAPH = "model.onnx"
OPTIONS = frozenset({"opset", "optimize"})
# How many tokens a graph with a cache has to generate like torch.
GENERATED = 32
# The tanh form of GELU is within 5e-4 of the exact one at any point; half precision has 11 bits.
APPROXIMATE = {"O3": Tolerance(max_relative_difference=2e-2), "O4": Tolerance(max_relative_difference=5e-2)}


def is_cached(export: Export) -> bool:
    """Whether the graph is one with a key-value cache: every causal language model's that has one (Transformer-XL has not)."""
    takes = inspect.signature(export.view.forward).parameters
    return isinstance(export.model, ElasticForCausalLM) and "past_key_values" in takes


def check(model: ElasticPreTrainedModel, subnet: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be had, before any work is done."""
    from ...graphs.optimize import check_level

    check_level(options.get("optimize"), model.config.base_config.model_type)
    check_opset(options.get("opset", OPSET))


def run_graph(export: Export, folder: Path) -> np.ndarray:
    """The main output of `model.onnx` in onnxruntime."""
    return load_graph(export, folder)(export.inputs.tensors)


def write_float(export: Export, path: Path) -> Path:
    """Write the float32 graph with the options of the export to a file."""
    from ...graphs.onnx import export_onnx

    settings = {name: export.options[name] for name in OPTIONS if name in export.options}
    return export_onnx(export.view, export.inputs.tensors, path, cache=is_cached(export), **settings)


def describe(export: Export, folder: Path) -> None:
    """Write what other libraries read beside the graph: a manifest, and the code of an elastic checkpoint."""
    from ...runtimes.onnxruntime import OnnxRunner
    from .manifest import write_manifest

    outputs = OnnxRunner(folder / GRAPH).outputs
    write_manifest(folder, GRAPH, export.view, export.inputs.tensors, outputs, is_cached(export))
    for path in export.staging.glob("*.py"):
        shutil.copy(path, folder / path.name)


def load_graph(export: Export, folder: Path, threads: int | None = None) -> Callable[[Mapping], np.ndarray]:
    """`model.onnx` as a function from a batch to its main output."""
    from ...runtimes.onnxruntime import OnnxRunner

    runner = OnnxRunner(folder / GRAPH, threads)
    return lambda inputs: main_output(runner(inputs))


def write_onnx(export: Export, folder: Path) -> None:
    """Write the float32 graph and its description."""
    write_float(export, folder / GRAPH)
    describe(export, folder)


def generation_evidence(export: Export, folder: Path, *, enforce: bool = True) -> dict[str, Any]:
    """Greedy generation of the graph, token by token with its cache, against the view's.

    Args:
        export: the export.
        folder: where its graph is.
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
    actual = decode_greedily(OnnxRunner(folder / GRAPH), ids, mask, count)
    record = compare_decoded(expected, actual)
    if enforce and record.pop("largest_lost_margin") > FLOAT32.max_relative_difference:
        raise ParityError(
            f"{folder.name}: only {record['generated_tokens_identical']} of {record['generated_tokens']} generated tokens are "
            "those of the model it came from"
        )
    record.pop("largest_lost_margin", None)
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


def tolerance_of(options: Mapping[str, Any]) -> Tolerance | None:
    """How far a graph of this level may be from the view; None for a format's own tolerance."""
    return APPROXIMATE.get(options.get("optimize"))


ONNX = register(
    Format(
        "onnx",
        "an ONNX graph in float32",
        write=write_onnx,
        run=run_graph,
        load=load_graph,
        packages=PACKAGES,
        extra=EXTRA,
        options=OPTIONS,
        tolerance=tolerance_of,
        evidence=generation_evidence,
        check=check,
    )
)
