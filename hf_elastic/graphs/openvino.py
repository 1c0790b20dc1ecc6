"""A model as OpenVINO IR."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..utils.files import staged_file
from .exporters import ON_TRANSFORMERS_5, missing_extra
from .onnx import AXIS_NAMES, at_least_two, check_inputs, check_weights, export_onnx, quiet

# As transformers' exporter and optimum-intel call it, so that `OVModelFor*` find it.
IR = "openvino_model.xml"
# On 4.57 the graph is drawn by Optimum, which is an extra of its own.
EXTRA = "hf-elastic[openvino]" if ON_TRANSFORMERS_5 else "hf-elastic[openvino,optimum]"
# All that OpenVINO says of a file that it could not write to its end.
STREAM_FAILED = "iostream error"


def export_openvino(model: PreTrainedModel, inputs: dict[str, torch.Tensor], path: Path) -> Path:
    """Write `model` as OpenVINO IR in float32, with open batch and sequence axes.

    On transformers 5 its `OpenVINOExporter` draws the graph. On 4.57, or where that exporter is missing, OpenVINO converts an
    ONNX graph: of optimum-intel only 1.27 goes with transformers 4.57, and it would add a second description of every
    architecture to reach the same IR. Its `OVModelFor*` read what is written here.

    Args:
        model: a transformers model with float32 parameters of any shape and strides.
        inputs: one real batch, as for `export_onnx`.
        path: the `.xml` file; the weights go to the `.bin` file beside it.

    Returns:
        `path`.

    Raises:
        ValueError: for inputs or weights as in `export_onnx`.
        ImportError: a package is missing; it names the extra.
        OSError: the disk is full.
    """
    check_inputs(model, inputs)
    check_weights(model)
    training = model.training
    model.eval()
    try:
        graph = _with_transformers(model, inputs) if ON_TRANSFORMERS_5 else None
        if graph is None:
            with tempfile.TemporaryDirectory() as folder:
                save(_convert(export_onnx(model, inputs, Path(folder) / "model.onnx")), path)
                return path
        return save(graph, path)
    finally:
        model.train(training)


def _with_transformers(model: PreTrainedModel, inputs: dict[str, torch.Tensor]):
    """The graph as transformers' exporter draws it; None where this version of transformers has none."""
    try:
        from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter
    except ImportError:
        return None
    sample = {name: at_least_two(tensor) for name, tensor in inputs.items()}
    shapes = {name: dict.fromkeys(range(len(AXIS_NAMES[t.dim()])), torch.export.Dim.DYNAMIC) for name, t in sample.items()}
    with quiet():
        config = OpenVINOConfig(dynamic=True, dynamic_shapes=shapes, stateful=False)
        return OpenVINOExporter().export(model, {**sample, "use_cache": False}, config).program


def _convert(path: Path):
    try:
        import openvino
    except ImportError as error:
        raise missing_extra(error, "OpenVINO", EXTRA) from error
    return openvino.convert_model(str(path))


def save(graph, path: Path) -> Path:
    """Write both files of an `openvino.Model`; they appear complete or not at all.

    Raises:
        OSError: they cannot be written: most likely the disk is full, which OpenVINO does not say.
    """
    import openvino

    with staged_file(path) as staged:
        try:
            openvino.save_model(graph, str(staged), compress_to_fp16=False)
        except RuntimeError as error:
            if STREAM_FAILED not in str(error):
                raise
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: OpenVINO could not write {path}") from error
    return path
