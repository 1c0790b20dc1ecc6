"""Sizes as graphs for onnxruntime or OpenVINO, one session each; a graph is exported once, and kept in a cache folder."""

from __future__ import annotations

import hashlib
import inspect
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
SUFFIXES = {"onnx": ".onnx", "onnx-int8": ".onnx", "openvino-int8": ".xml"}
OUTPUTS = {"last_hidden_state": "token_embeddings", "logits": "scores"}


class GraphTower:
    """Runs a size in onnxruntime or OpenVINO, on the CPU.

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
        backend: "onnx" or "openvino" in float32, from the same file; "onnx-int8" or "openvino-int8" with weights in int8, whose
            activations are quantized as it runs.
        threads: of the runtime.
        cache_dir: where graphs are kept; default: `hf_elastic/serving` in the cache of Hugging Face.

    Raises:
        UserError: a size cannot be exported.
        MissingPackageError: a package is not installed; it names the extra.
    """
    from ..export.formats import FORMATS

    FORMATS[backend].check_installed()
    if backend.startswith("openvino"):
        from ..runtimes.openvino import OpenVINORunner as Runner
    else:
        from ..runtimes.onnxruntime import OnnxRunner as Runner
    kind = "onnx" if backend == "openvino" else backend
    folder = Path(HF_HOME, "hf_elastic", "serving") if cache_dir is None else Path(cache_dir)
    found = {}
    for name, tower in towers.items():
        model, rest = tower.modules[0].model, tower.modules[1:]
        path = folder / f"{digest_of(model, kind)}{SUFFIXES[kind]}"
        if not path.is_file():
            write(model, encoder, kind, path)
        found[name] = GraphTower(Runner(path, threads), rest)
    return found


def write(model: nn.Module, encoder: TextEncoder, kind: str, path: Path) -> None:
    """Export a size, as one of `SUFFIXES`; the file is all there or not there."""
    from ..export.onnx.quantize import prepare_graph, quantize_dynamically
    from ..export.openvino.quantize import compress_openvino
    from ..graphs.onnx import export_onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    takes = inspect.signature(model.forward).parameters
    sample = {name: value for name, value in encoder.pad(encoder.encode(TEXTS, truncate=True)).items() if name in takes}
    if kind == "onnx":
        export_onnx(model, sample, path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        plain = export_onnx(model, sample, Path(work, "plain.onnx"))
        if kind == "openvino-int8":
            compress_openvino(plain, path)
            return
        with staged_file(path) as staged:
            quantize_dynamically(prepare_graph(plain, Path(work, "prepared.onnx")), staged)


def digest_of(model: nn.Module, kind: str) -> str:
    """A hash of all that a graph depends on: weights, config, what it is, processor where it counts, and what wrote it."""
    from ..export.onnx.instructions import resolve_instructions

    writers = (*WRITERS, "openvino", "nncf") if kind == "openvino-int8" else WRITERS
    facts = [type(model).__name__, model.config.to_dict(), kind, {name: version(name) for name in writers}]
    facts += [resolve_instructions()] if kind == "onnx-int8" else []
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().numpy().reshape(-1).view("uint8"))
    return digest.hexdigest()[:32]
