"""int8 from a float32 ONNX graph with onnxruntime's own quantizers, in both majors of transformers.

Optimum's `ORTQuantizer` calls the same quantizers, but it would quantize the products of attention as well (it cannot pass
`MatMulConstBOnly`), which costs accuracy, and it does not fold a tied output layer into a constant first. So they are called
directly here, with Optimum's types for each instruction set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from ...core.errors import UserError
from ...graphs.exporters import missing_extra, staged_graph, weight_file
from ...graphs.onnx import quiet
from .instructions import INSTRUCTIONS, resolve_instructions
from .tied import share_tied_tables

try:
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as error:
    raise missing_extra(error) from error

# Operator -> which of its inputs is the weight.
WEIGHT_INPUTS = {"MatMul": 1, "Gather": 0}
# Fused operators hide the types of what they compute from the quantizer; everything there is float32.
HIDDEN_TYPE = {"DefaultTensorType": onnx.TensorProto.FLOAT}
BLOCK_SIZE = 128  # weights that share a scale in weight-only int8
# What MatMulNBits computes in: 1 is float32, 4 quantizes each block of activations too.
ACCURACY_LEVELS = {"float": 1, "int8": 4}


def prepare_graph(source: Path, target: Path) -> Path:
    """Write a graph in the form in which the quantizers find every weight.

    Constants are folded (a tied output layer's transposed embedding becomes a weight), nodes get unique names, and shapes on
    record go: the quantizers transpose weights, infer the shapes again and stumble on the old ones. `Gemm` becomes a product
    and a sum. onnxruntime's fused `Attention` is taken apart into its projections and `MultiHeadAttention`, since its int8
    form would drop the padding mask.

    Args:
        source: a float32 file that `export_onnx` wrote.
        target: the file to write.

    Raises:
        ValueError: `source` is no file, or keeps its weights in a second file (above 2 GB).
    """
    if not source.is_file():
        raise UserError(f"{source} is not a file")
    if weight_file(source).exists():
        raise UserError(
            f"{source} keeps its weights in {weight_file(source).name}; int8 takes models of at most 2 GB in one file"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as staging, quiet():
        shapeless, folded = Path(staging) / "shapeless.onnx", Path(staging) / "folded.onnx"
        graph = onnx.load(source)
        graph.graph.ClearField("value_info")
        onnx.save(graph, shapeless)
        quant_pre_process(shapeless, folded, skip_symbolic_shape=True, skip_onnx_shape=True)
        graph = onnx.load(folded)
        graph.graph.ClearField("value_info")
        _unpack_attention(graph)
        # The quantizers would do it themselves, and give the products names that nobody can exclude.
        products = ONNXModel(graph)
        products.replace_gemm_with_matmul()
        graph = products.model
        for place, node in enumerate(graph.graph.node):
            node.name = f"{place}_{node.op_type}" if not node.name else node.name
        onnx.save(graph, target)
    return target


def _unpack_attention(model) -> None:
    """Replace `Attention` of onnxruntime (one packed projection) by three products and `MultiHeadAttention`."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        packed = node.op_type == "Attention" and node.domain == "com.microsoft"
        inputs = [*node.input, *[""] * (6 - len(node.input))]
        nodes += _unpacked(node, inputs, weights, model.graph) if packed and not inputs[4] else [node]
    if len(nodes) == len(model.graph.node):
        return
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _unpacked(node, inputs: list[str], weights: Mapping, graph) -> list:
    source, weight, bias, mask, _, attention_bias = inputs[:6]
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    packed = numpy_helper.to_array(weights[weight])
    sizes = attributes.pop("qkv_hidden_sizes", [packed.shape[1] // 3] * 3)
    nodes, outputs = [], []
    for part, columns in zip("qkv", np.split(packed, np.cumsum(sizes)[:2], axis=1)):
        name, output = f"{weight}_{part}", f"{node.output[0]}_{part}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(columns), name))
        nodes.append(onnx.helper.make_node("MatMul", [source, name], [output], f"{node.name or node.output[0]}_{part}"))
        outputs.append(output)
    ends = [bias, mask, attention_bias]
    kept = {
        name: value for name, value in attributes.items() if name in ("num_heads", "mask_filter_value", "scale", "unidirectional")
    }
    attention = onnx.helper.make_node(
        "MultiHeadAttention", [*outputs, *ends], list(node.output), node.name, domain="com.microsoft", **kept
    )
    return [*nodes, attention]


def weighted_nodes(path: Path) -> dict[str, str]:
    """Nodes of a prepared graph that multiply with, or look rows up in, a float32 weight: node name -> name of its weight."""
    graph = onnx.load(path).graph
    weights = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) >= 2}
    found = {}
    for node in graph.node:
        place = WEIGHT_INPUTS.get(node.op_type)
        if place is not None and node.input[place] in weights:
            found[node.name] = node.input[place]
    return found


def quantize_dynamically(
    prepared: Path, target: Path, cpu_instructions: str | None = None, excluded: Collection[str] = ()
) -> None:
    """Weights become int8 now, activations at run time; no calibration data is needed.

    Embeddings and every product with a weight become int8; attention scores stay float32. Weights get one scale per output
    channel, which measured closest to float32 on MiniLM (mean logit error half that of one scale per matrix, at the same speed).

    Args:
        prepared: what `prepare_graph` wrote.
        target: the file to write.
        cpu_instructions: one of `INSTRUCTIONS`; None or "auto" for this CPU's.
        excluded: names of nodes that stay float32.
    """
    settings = INSTRUCTIONS[resolve_instructions(cpu_instructions)]
    with staged_graph(target) as staged, quiet():
        quantize_dynamic(
            prepared,
            staged,
            per_channel=True,
            reduce_range=settings.reduce_range,
            weight_type=QuantType.QInt8 if settings.signed else QuantType.QUInt8,
            nodes_to_exclude=sorted(excluded),
            extra_options=dict(HIDDEN_TYPE),
        )
        share_tied_tables(prepared, staged)


def quantize_statically(
    prepared: Path,
    target: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    cpu_instructions: str | None = None,
    excluded: Collection[str] = (),
) -> None:
    """Like `quantize_dynamically`, with the ranges of activations fixed to those that calibration data take (QDQ format).

    Args:
        prepared: what `prepare_graph` wrote.
        target: the file to write.
        feeds: inputs of the graph by name, `int64[batch, sequence]` each.
        cpu_instructions, excluded: as there.
    """
    settings = INSTRUCTIONS[resolve_instructions(cpu_instructions)]
    with staged_graph(target) as staged, quiet():
        insert_pairs(
            prepared,
            staged,
            feeds,
            list(WEIGHT_INPUTS),
            sorted({*excluded, *_without_weight(prepared)}),
            {**HIDDEN_TYPE, "WeightSymmetric": settings.signed},
            reduce_range=settings.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8 if settings.signed else QuantType.QUInt8,
        )


def insert_pairs(
    source: Path,
    target: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    operators: list[str],
    excluded: list[str],
    extra: Mapping[str, object],
    **options,
) -> None:
    """Static quantization with one scale per output channel of a weight: pairs of QuantizeLinear and DequantizeLinear (QDQ).

    Only inputs of products are quantized, not their outputs: those feed sums and norms, which stay float32.

    Args:
        source: a float32 file.
        target: the file to write.
        feeds: what to calibrate on: inputs of the graph by name.
        operators: types of the nodes to quantize, where their second input is constant.
        excluded: names of nodes that stay float32.
        extra: more of onnxruntime's `extra_options`.
        **options: of `quantize_static`.
    """
    quantize_static(
        source,
        target,
        Feeds(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=True,
        nodes_to_exclude=excluded,
        extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": operators, **extra},
        **options,
    )


def quantize_weights(prepared: Path, target: Path, compute: str = "float", excluded: Collection[str] = ()) -> None:
    """Only the weights become int8: in blocks of 128 with a scale each, embeddings with one scale.

    Args:
        prepared: what `prepare_graph` wrote.
        target: the file to write.
        compute: "float" multiplies in float32; "int8" quantizes each block of activations as it goes.
        excluded: as for `quantize_dynamically`.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    with staged_graph(target) as staged, quiet():
        looked_up = staged.with_name("embeddings.onnx")
        quantize_dynamic(
            prepared,
            looked_up,
            op_types_to_quantize=["Gather"],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(excluded),
            extra_options=dict(HIDDEN_TYPE),
        )
        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=ACCURACY_LEVELS[compute], bits=8
        )
        quantizer = MatMulNBitsQuantizer(onnx.load(looked_up), algo_config=config, nodes_to_exclude=sorted(excluded))
        quantizer.process()
        onnx.save(quantizer.model.model, staged)


def _without_weight(prepared: Path) -> list[str]:
    """Nodes of the quantized operators that are not about weights, such as a `Gather` of a shape."""
    weighted = weighted_nodes(prepared)
    nodes = onnx.load(prepared).graph.node
    return [node.name for node in nodes if node.op_type in WEIGHT_INPUTS and node.name not in weighted]


class Feeds(CalibrationDataReader):
    """Inputs of a graph by name, one after the other, as onnxruntime reads them."""

    def __init__(self, feeds: Iterable[Mapping[str, np.ndarray]]):
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next ones, None at the end."""
        return next(self._feeds, None)
