"""OpenVINO IR with int8 weights, or quantized with calibration data, through NNCF."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ...graphs.exporters import missing_extra
from ...graphs.onnx import quiet
from ...graphs.openvino import EXTRA, save

# Operators that NNCF would quantize besides products with weights.
STAY_FLOAT = ["ScaledDotProductAttention", "Add"]
NO_SMOOTHING = -1


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
        raise missing_extra(error, "OpenVINO", EXTRA) from error
    level = nncf.common.logging.nncf_logger.level
    nncf.set_log_level(logging.ERROR)
    try:
        with quiet():
            yield nncf
    finally:
        nncf.set_log_level(level)
