"""Int8 for TensorRT: QuantizeLinear and DequantizeLinear around the products with weights, every zero point zero."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process

from ...graphs.onnx import quiet
from ..onnx.quantize import insert_pairs
from .graph import angle_nodes

PRODUCTS = ["MatMul", "Gemm"]


def quantize(path: Path, batches: Iterable[dict[str, np.ndarray]]) -> None:
    """Quantize a float32 graph in place, as TensorRT takes it: symmetric, one scale per output channel of a weight.

    The weights are stored in int8 behind a DequantizeLinear; inputs of products get a pair of nodes with a scale from the
    batches; their outputs, the products of attention, and rotary angles stay in float32.

    Args:
        path: a graph that `export_onnx` wrote, its weights inside.
        batches: what to calibrate on: inputs by name.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as staging, quiet():
        folded, target = Path(staging) / "folded.onnx", Path(staging) / path.name
        # Folding makes a constant of a tied output layer's transposed embedding: only constant weights are quantized.
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        model = onnx.load(folded)
        # The quantizer transposes weights, infers all shapes again and stumbles on the old ones.
        model.graph.ClearField("value_info")
        onnx.save(model, folded)
        graph = model.graph
        angles = angle_nodes(graph)
        insert_pairs(
            folded,
            target,
            batches,
            PRODUCTS,
            [node.name for node in graph.node if node.op_type in PRODUCTS and node.output[0] in angles],
            # TensorRT dequantizes no int32, which biases would be.
            {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": True},
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        target.replace(path)
