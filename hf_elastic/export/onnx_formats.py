"""ONNX and int8 ONNX as formats of `export_subnet`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._onnx_backend import EXTRA, PACKAGES
from .formats import Export, Format, register
from .outputs import main_output

GRAPH = "model.onnx"


def run_graph(export: Export, folder: Path) -> np.ndarray:
    """The main output of `model.onnx` in onnxruntime."""
    from .onnx import OnnxRunner

    return main_output(OnnxRunner(folder / GRAPH)(export.inputs.tensors))


def write_onnx(export: Export, folder: Path) -> None:
    """Write the float32 graph."""
    from .onnx import export_onnx

    export_onnx(export.view, export.inputs.tensors, folder / GRAPH)


def write_int8(export: Export, folder: Path) -> None:
    """Quantize the float32 graph, which is written first where it is not there."""
    from .onnx import export_onnx, quantize_onnx

    if "onnx" in export.written:
        quantize_onnx(export.written["onnx"] / GRAPH, folder / GRAPH)
        return
    source = export_onnx(export.view, export.inputs.tensors, folder / "float.onnx")
    quantize_onnx(source, folder / GRAPH)
    source.unlink()


ONNX = register(Format("onnx", "an ONNX graph in float32", write=write_onnx, run=run_graph, packages=PACKAGES, extra=EXTRA))
ONNX_INT8 = register(Format("onnx-int8", "the same in int8", write=write_int8, run=run_graph, packages=PACKAGES, extra=EXTRA))
