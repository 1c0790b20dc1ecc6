"""Sizes as ONNX graphs, one session each; a graph is exported once, and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from torch import nn

from ..export.inputs import TEXTS
from ..utils.files import staged_file
from .loading import TorchTower
from .tokens import TextEncoder

# Everything that writes a graph.
WRITERS = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "hf-elastic")
OUTPUTS = {"last_hidden_state": "token_embeddings", "logits": "scores"}


class GraphTower:
    """Runs a size in onnxruntime, on the CPU.

    Args:
        run: the graph, from arrays by name to arrays by name.
        modules: what comes after the transformer.
    """

    def __init__(self, run: Callable[[dict], dict], modules: Iterable[nn.Module]):
        self.run, self.modules = run, list(modules)

    def __call__(self, features: dict) -> dict:
        """Features in, features out."""
        tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
        for name, array in self.run(tensors).items():
            if name in OUTPUTS:
                features[OUTPUTS[name]] = torch.from_numpy(array)
        for module in self.modules:
            features = module(features)
        return features


def graph_towers(
    towers: dict[str, TorchTower], encoder: TextEncoder, backend: str, *, threads: int | None, cache_dir: str | None
) -> dict[str, GraphTower]:
    """Every size as a graph.

    Args:
        towers: the sizes in torch.
        encoder: their tokenizer.
        backend: "onnx" in float32, or "onnx-int8" with weights in int8 and activations quantized as it runs.
        threads: of onnxruntime.
        cache_dir: where graphs are kept; default: `hf_elastic/serving` in the cache of Hugging Face.

    Raises:
        UserError: a size cannot be exported.
        MissingPackageError: onnx or onnxruntime is not installed.
    """
    from ..runtimes.onnxruntime import OnnxRunner

    folder = Path(HF_HOME, "hf_elastic", "serving") if cache_dir is None else Path(cache_dir)
    found = {}
    for name, tower in towers.items():
        model, rest = tower.modules[0].model, tower.modules[1:]
        path = folder / f"{digest_of(model, backend)}.onnx"
        if not path.is_file():
            write(model, encoder, backend, path)
        found[name] = GraphTower(OnnxRunner(path, threads), rest)
    return found


def write(model: nn.Module, encoder: TextEncoder, backend: str, path: Path) -> None:
    """Export a size; the file is all there or not there."""
    from ..export.onnx.quantize import prepare_graph, quantize_dynamically
    from ..graphs.onnx import export_onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    sample = encoder.pad(encoder.encode(TEXTS, truncate=True))
    if backend == "onnx":
        export_onnx(model, sample, path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as work, staged_file(path) as staged:
        plain = export_onnx(model, sample, Path(work, "plain.onnx"))
        quantize_dynamically(prepare_graph(plain, Path(work, "prepared.onnx")), staged)


def digest_of(model: nn.Module, backend: str) -> str:
    """A hash of all that a graph depends on: weights, config, backend, processor where it counts, and what wrote it."""
    from ..export.onnx.instructions import resolve_instructions

    facts = [type(model).__name__, model.config.to_dict(), backend, {name: version(name) for name in WRITERS}]
    facts += [resolve_instructions()] if backend == "onnx-int8" else []
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().numpy().reshape(-1).view("uint8"))
    return digest.hexdigest()[:32]
