"""`export.json`: what `transformers.exporters.ExportedModel.from_pretrained` (transformers 5) needs beside a graph.

Written in both majors, so that a graph from either runs there. Encoders return the model's own output class. A cache goes in and
comes out as nested dicts, `{"0": {"key": ..., "value": ...}, ...}`, since the classes of caches are not the same in the majors:
`step = exported(input_ids=..., past_key_values=step["present"], ...)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from ...core.errors import UserError
from ...graphs.cache import PRESENT, flatten, sample_step
from ...utils.files import write_atomically

MANIFEST = "export.json"
SCHEMA = 1


def write_manifest(
    folder: Path, graph: str, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], outputs: list[str], cached: bool
) -> None:
    """Describe a graph for `ExportedModel`.

    Args:
        folder: where the graph is.
        graph: its file name.
        model: what it computes.
        inputs: a batch that the graph was exported with.
        outputs: names of its outputs, in their order.
        cached: whether it takes and returns a cache.

    Raises:
        ValueError: the graph returns something that the model does not.
    """
    sample = sample_step(model, inputs) if cached else dict(inputs)
    structure = _nested(outputs) if cached else _model_output(model, sample, outputs)
    spec = pytree.tree_flatten(structure)[1]
    metadata = {
        "architecture": type(model).__name__,
        "packages": {"transformers": transformers.__version__},
        "export_config": {"export_format": "onnx"},
        "export_dtype": "float32",
        "export_device": "cpu",
        "kwargs": {name: _describe(value) for name, value in sample.items()},
        "in_spec": None,
        "out_spec": pytree.treespec_dumps(spec),
        "in_constants": {},
        "out_constants": [],
    }
    components = {"model": {"file": graph, "metadata": metadata}}
    manifest = {"schema_version": SCHEMA, "export_format": "onnx", "components": components}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    # ExportedModel insists on this file, in which its own exports keep their weights; ours are in the graph.
    (folder / f"{graph}.data").touch()


def _nested(names: list[str]) -> dict:
    """Outputs of a cached graph as `CachedDecoder` returns them."""
    structure: dict = {}
    for index, name in enumerate(names):
        *path, last = name.split(".")
        inner = structure
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = index
    if list(structure) != ["logits", PRESENT]:
        raise UserError(f"a graph with a cache returns logits and {PRESENT}, this one returns {', '.join(structure)}")
    return structure


@torch.no_grad()
def _model_output(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], names: list[str]):
    """The model's output with only what the graph returns."""
    full = model(**inputs)
    unknown = [name for name in names if name not in full]
    if unknown:
        raise UserError(f"the graph returns {', '.join(unknown)}, which {type(full).__name__} does not have")
    output = type(full)(**{name: full[name] for name in names})
    if list(output) != names:
        raise UserError(f"the graph returns {', '.join(names)} in another order than {type(full).__name__}")
    return output


def _describe(value: torch.Tensor | Mapping) -> dict:
    if isinstance(value, Mapping):
        return {"leaves": {name: _describe(tensor) for name, tensor in flatten(value).items()}}
    return {"rank": value.dim(), "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
