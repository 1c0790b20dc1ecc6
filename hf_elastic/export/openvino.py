"""OpenVINO: write a model as IR, compress or quantize it with NNCF, run IR or ONNX files on the CPU."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ._onnx_backend import ON_TRANSFORMERS_5
from .onnx import AXIS_NAMES, _at_least_two, _check_inputs, _check_weights, _quiet, export_onnx
from .openvino_formats import EXTRA

# OpenVINO's own choice is bfloat16 where the CPU has it, which loses digits that the other runtimes keep.
PRECISION = "f32"
# Operators that NNCF would quantize besides products with weights.
STAY_FLOAT = ["ScaledDotProductAttention", "Add"]
NO_SMOOTHING = -1
# All that OpenVINO says of a file that it could not write to its end.
STREAM_FAILED = "iostream error"


def missing(error: ImportError) -> ImportError:
    """The error to raise from `error`: it names the extra."""
    return ImportError(f"OpenVINO needs {error.name or error}, which is not installed: run pip install '{EXTRA}'")


def weights_of(path: Path) -> Path:
    """The file of weights that belongs to an IR file."""
    return path.with_suffix(".bin")


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
    _check_inputs(model, inputs)
    _check_weights(model)
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
    sample = {name: _at_least_two(tensor) for name, tensor in inputs.items()}
    shapes = {name: dict.fromkeys(range(len(AXIS_NAMES[t.dim()])), torch.export.Dim.DYNAMIC) for name, t in sample.items()}
    with _quiet():
        config = OpenVINOConfig(dynamic=True, dynamic_shapes=shapes, stateful=False)
        return OpenVINOExporter().export(model, {**sample, "use_cache": False}, config).program


def _convert(path: Path):
    try:
        import openvino
    except ImportError as error:
        raise missing(error) from error
    return openvino.convert_model(str(path))


def save(graph, path: Path) -> Path:
    """Write both files of an `openvino.Model`; they appear complete or not at all.

    Raises:
        OSError: they cannot be written: most likely the disk is full, which OpenVINO does not say.
    """
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        staged = Path(folder) / path.name
        try:
            openvino.save_model(graph, str(staged), compress_to_fp16=False)
        except RuntimeError as error:
            if STREAM_FAILED not in str(error):
                raise
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: OpenVINO could not write {path}") from error
        for source, target in ((weights_of(staged), weights_of(path)), (staged, path)):
            os.replace(source, target)
    return path


def compress_openvino(source: Path, target: Path) -> Path:
    """Weights in int8, one scale per output channel, computed in float: `nncf.compress_weights`. It needs no data."""
    with _quiet_nncf() as nncf:
        return save(nncf.compress_weights(_read(source), mode=nncf.CompressWeightsMode.INT8_SYM), target)


def quantize_openvino(source: Path, target: Path, rows: Iterable[Mapping[str, torch.Tensor]]) -> Path:
    """Products with weights in int8, activations with ranges from calibration data: `nncf.quantize`, its mode for transformers.

    Attention and sums stay in float32. NNCF's SmoothQuant is off: it moved the logits of a MiniLM further from float32.

    Args:
        source: an IR file in float32.
        target: the file to write.
        rows: inputs by name, `int64[batch, sequence]` each.
    """
    rows = list(rows)
    with _quiet_nncf() as nncf:
        graph = _read(source)
        names = [port.get_any_name() for port in graph.inputs]
        data = nncf.Dataset([{name: row[name].numpy() for name in names} for row in rows])
        no_smoothing = nncf.AdvancedSmoothQuantParameters(matmul=NO_SMOOTHING, convolution=NO_SMOOTHING)
        quantized = nncf.quantize(
            graph,
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            ignored_scope=nncf.IgnoredScope(names=_products_of_activations(graph), types=STAY_FLOAT, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=no_smoothing),
        )
        return save(quantized, target)


def _products_of_activations(graph) -> list[str]:
    """Products without a weight: those of attention, where it is not one operator."""
    products = [node for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    return [
        node.get_friendly_name()
        for node in products
        if all(node.input_value(place).get_node().get_type_name() != "Constant" for place in (0, 1))
    ]


def _read(path: Path):
    import openvino

    return openvino.Core().read_model(str(path))


@contextlib.contextmanager
def _quiet_nncf() -> Iterator:
    """NNCF without its progress bars and notes."""
    try:
        import nncf
    except ImportError as error:
        raise missing(error) from error
    level = nncf.common.logging.nncf_logger.level
    nncf.set_log_level(logging.ERROR)
    try:
        with _quiet():
            yield nncf
    finally:
        nncf.set_log_level(level)


class OpenVINORunner:
    """An IR or ONNX file compiled for the CPU, in float32 wherever its weights are not int8.

    Args:
        path: the `.xml` or `.onnx` file.
        threads: CPU threads; None takes OpenVINO's default.
        options: further properties of the CPU plugin, such as `DYNAMIC_QUANTIZATION_GROUP_SIZE`.
        shape: (batch, sequence length) that all inputs are fixed to, so that shapes and memory are planned once and not with
            every call; shorter inputs have to be padded. None takes any shape.

    Raises:
        ImportError: openvino is not installed; it names the extra.
        ValueError: `path` is not a file.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        options: Mapping[str, object] | None = None,
        shape: tuple[int, int] | None = None,
    ):
        try:
            import openvino
        except ImportError as error:
            raise missing(error) from error
        if not Path(path).is_file():
            raise ValueError(f"{path} is not a file")
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISION, **(options or {})}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        graph = core.read_model(str(path))
        if shape is not None:
            graph.reshape({port.get_any_name(): list(shape) for port in graph.inputs})
        compiled = core.compile_model(graph, "CPU", settings)
        self.inputs = [port.get_any_name() for port in compiled.inputs]
        self.outputs = [port.get_any_name() for port in compiled.outputs]
        self._request = compiled.create_infer_request()

    def __call__(self, inputs: Mapping[str, torch.Tensor | np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph; inputs that it does not take are dropped.

        Raises:
            ValueError: an input of the graph is missing.
        """
        lacking = [name for name in self.inputs if name not in inputs]
        if lacking:
            raise ValueError(f"the graph needs the inputs {lacking}; got {list(inputs)}")
        given = {name: inputs[name] for name in self.inputs}
        feed = {name: value if isinstance(value, np.ndarray) else value.numpy(force=True) for name, value in given.items()}
        results = self._request.infer(feed, share_inputs=True, share_outputs=True)
        return {name: results[place].copy() for place, name in enumerate(self.outputs)}  # the next call overwrites the buffers
