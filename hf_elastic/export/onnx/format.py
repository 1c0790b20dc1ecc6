"""ONNX as a format of `export_subnet`: the float32 graph, and what all ONNX formats share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.modeling_elastic import ElasticPreTrainedModel
from ...graphs.exporters import EXTRA, PACKAGES, check_opset
from ..format import Export, Format, Predict
from ..outputs import main_output
from ..parity import FLOAT32, Tolerance
from .generation import generation_evidence, is_cached

GRAPH = "model.onnx"
OPTIONS = frozenset({"opset", "optimize"})
# The tanh form of GELU is within 5e-4 of the exact one at any point; half precision has 11 bits.
APPROXIMATE = {"O3": Tolerance(max_relative_difference=2e-2), "O4": Tolerance(max_relative_difference=5e-2)}


class OnnxFormat(Format):
    """An ONNX graph in float32, with the key-value cache where there is one; the base of the others."""

    name = "onnx"
    description = "an ONNX graph in float32"
    packages = PACKAGES
    extra = EXTRA
    options = OPTIONS
    hub_name = "model"

    def write(self, export: Export, folder: Path) -> None:
        """Write the graph and its description."""
        write_float(export, folder)
        describe(export, folder)

    def load(self, export: Export, folder: Path) -> Predict:
        """The graph in onnxruntime."""
        return load_graph(folder / GRAPH)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse an opset that no model can be written in."""
        if "opset" in options:
            check_opset(options["opset"])

    def check(self, model: ElasticPreTrainedModel, options: Mapping[str, Any]) -> None:
        """Refuse a level of optimization that is not to be had for this architecture here."""
        from ...graphs.optimize import check_level

        check_level(options.get("optimize"), model.config.base_config.model_type)

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Wider for the levels that change values."""
        return APPROXIMATE.get(options.get("optimize"), FLOAT32)

    def evidence(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """What a decoder generates."""
        return generation_evidence(export, folder / GRAPH)


def write_float(export: Export, folder: Path) -> None:
    """Write the float32 graph with the options of the export."""
    from ...graphs.onnx import export_onnx

    settings = {name: export.options[name] for name in OPTIONS if name in export.options}
    export_onnx(export.view, export.inputs.tensors, folder / GRAPH, cache=is_cached(export), **settings)


def load_graph(path: Path) -> Predict:
    """A graph as a function from a batch to its main output."""
    from ...runtimes.onnxruntime import OnnxRunner

    runner = OnnxRunner(path)
    return lambda inputs: main_output(runner(inputs))


def describe(export: Export, folder: Path) -> None:
    """Write the manifest that other libraries read beside the graph."""
    from ...runtimes.onnxruntime import OnnxRunner
    from .manifest import write_manifest

    outputs = OnnxRunner(folder / GRAPH).outputs
    write_manifest(folder, GRAPH, export.view, export.inputs.tensors, outputs, is_cached(export))
