"""From a float32 ONNX graph to one that TensorRT builds from as it is: its types and its shapes are in the graph.

TensorRT 11 knows strongly typed networks only (its guide "Migrating from TensorRT 10.x to 11.x"), and 10 on request: whatever is
to run in 16 bits has to be of 16 bits in the graph. That has a second advantage: what a CPU computes from the same file is what
TensorRT is asked to compute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...core.errors import UserError

LOW = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
# Operators that stay in float32: sums over many values and what overflows or cancels in 16 bits, as in torch.autocast.
FLOAT32_OPERATORS = frozenset(
    ("CumSum", "Exp", "LayerNormalization", "Log", "LogSoftmax", "Pow", "RMSNormalization", "Reciprocal", "ReduceL2",
     "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax", "Sqrt",
     "ConstantOfShape")  # which makes no bfloat16 in the opsets of the exporters
)  # fmt: skip
# Of a position times a frequency, 16 bits would keep whole numbers only.
ANGLES = ("Cos", "Sin")


def fix_axes(model: ModelProto, sizes: Mapping[str, int]) -> None:
    """Give named axes of the inputs and outputs a size (in place); shapes in between are forgotten, and inferred anew."""
    for value in [*model.graph.input, *model.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    model.graph.ClearField("value_info")


def constants_to_initializers(graph: GraphProto) -> None:
    """Turn the tensors of `Constant` nodes into initializers (in place): one kind of constant is left to treat."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Value -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output}


def angle_nodes(graph: GraphProto) -> set[str]:
    """The nodes of rotary angles, by their first output: sines and cosines, and all that leads to them."""
    makes = producers(graph)
    found: set[str] = set()
    pending = [node for node in graph.node if node.op_type in ANGLES]
    while pending:
        node = pending.pop()
        if node.output[0] not in found:
            found.add(node.output[0])
            pending.extend(makes[name] for name in node.input if name in makes)
    return found


def lower_precision(model: ModelProto, precision: str) -> ModelProto:
    """A copy of a float32 graph that computes in 16 bits, with casts where the two meet; inputs and outputs keep their types.

    `FLOAT32_OPERATORS`, rotary angles, and what lies between two such nodes stay in float32. Weights are stored in the type that
    they are used in; float16 takes its largest finite value where a mask has float32's.

    Args:
        model: a graph without subgraphs, its weights inside.
        precision: "fp16" or "bf16".

    Raises:
        ValueError: a node holds a graph of its own.
    """
    constants_to_initializers(model.graph)
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UserError(f"tensorrt: {node.op_type} ({node.name}) holds a graph of its own, which {precision} does not reach")
    typed = onnx.shape_inference.infer_shapes(model)
    return _Lowering(typed, precision).run()


class _Lowering:
    """One conversion: which nodes are lowered, and in which types each value exists."""

    def __init__(self, model: ModelProto, precision: str):
        self.model, self.graph = model, model.graph
        self.low, self.dtype = LOW[precision]
        values = [*self.graph.input, *self.graph.output, *self.graph.value_info]
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        self.kept = self._kept()
        # (value, type) -> its name in that type
        self.names: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def _kept(self) -> set[int]:
        """Indices of the nodes that stay in float32."""
        angles = angle_nodes(self.graph)
        kept = {i for i, node in enumerate(self.graph.node) if node.op_type in FLOAT32_OPERATORS or node.output[0] in angles}
        made_by = {name: i for i, node in enumerate(self.graph.node) for name in node.output}
        read_by = defaultdict(set)
        for i, node in enumerate(self.graph.node):
            for name in node.input:
                read_by[name].add(i)
        while True:  # an epsilon between a mean and its root must not round the mean
            between = {
                i
                for i, node in enumerate(self.graph.node)
                if i not in kept
                and (before := [made_by[name] for name in node.input if name in self.floats and name in made_by])
                and kept.issuperset(before)
                and (after := set().union(*(read_by[name] for name in node.output)))
                and kept >= after
            }
            if not between:
                return kept
            kept |= between

    def run(self) -> ModelProto:
        for value in self.graph.input:
            if value.name in self.floats:
                self.names[value.name, TensorProto.FLOAT] = value.name
        outputs = {value.name for value in self.graph.output}
        for i, node in enumerate(self.graph.node):
            kind = TensorProto.FLOAT if i in self.kept else self.low
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [self._in_type(name, kind) for name in node.input]
            if kind == self.low:
                self._retype(copy)
            self.nodes.append(copy)
            for position, name in enumerate(node.output):
                if name in self.floats:
                    made = f"{name}/low" if name in outputs and kind == self.low else name
                    copy.output[position] = made
                    self.names[name, kind] = made
        for name in outputs & self.floats:
            if (name, TensorProto.FLOAT) not in self.names:
                self._cast(self.names[name, self.low], name, TensorProto.FLOAT)
        return self._result()

    def _in_type(self, name: str, kind: int) -> str:
        """The name of a float value in a type, made where it does not exist yet; other values keep theirs."""
        if name in self.weights:
            return self._weight(name, kind)
        if name not in self.floats:
            return name
        if (name, kind) not in self.names:
            source = self.names[name, TensorProto.FLOAT if kind == self.low else self.low]
            target = f"{name}/{'low' if kind == self.low else 'float'}"
            self._cast(source, target, kind)
            self.names[name, kind] = target
        return self.names[name, kind]

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind))

    def _weight(self, name: str, kind: int) -> str:
        if (name, kind) not in self.names:
            tensor = TensorProto()
            tensor.CopyFrom(self.weights[name])
            if kind == self.low:
                tensor = self._rounded(tensor)
                tensor.name = f"{name}/low"
            self.tensors.append(tensor)
            self.names[name, kind] = tensor.name
        return self.names[name, kind]

    def _rounded(self, tensor: TensorProto) -> TensorProto:
        values = numpy_helper.to_array(tensor)
        largest = float(ml_dtypes.finfo(self.dtype).max)
        clipped = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
        return numpy_helper.from_array(clipped.astype(self.dtype), tensor.name)

    def _retype(self, node: NodeProto) -> None:
        """Make a cast to float32 one to the lower type."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = self.low

    def _result(self) -> ModelProto:
        others = [tensor for tensor in self.graph.initializer if tensor.name not in self.weights]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*others, *self.tensors])
        self.graph.ClearField("value_info")
        onnx.checker.check_model(self.model, full_check=True)
        return self.model


def rounded_on_cpu(model: ModelProto) -> ModelProto:
    """A float32 graph that rounds every value which is bfloat16 in the given graph, for processors without bfloat16 kernels.

    Products add up in float32, as on tensor cores. Run it with optimizations off: they would remove the rounding.
    """
    low, types = TensorProto.BFLOAT16, {}
    typed = onnx.shape_inference.infer_shapes(model)
    for value in [*typed.graph.input, *typed.graph.output, *typed.graph.value_info]:
        types[value.name] = value.type.tensor_type.elem_type
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == low:
            tensor.CopyFrom(_as_float32(tensor))
    nodes = []
    for node in result.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == low:
                attribute.t.CopyFrom(_as_float32(attribute.t))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == low:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for position, name in enumerate(node.output):
            if types.get(name) == low:
                node.output[position] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/bf16"], to=low))
                nodes.append(helper.make_node("Cast", [f"{name}/bf16"], [name], to=TensorProto.FLOAT))
    _replace_nodes(result.graph, nodes)
    return result


def _as_float32(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def count_in_floats(model: ModelProto) -> None:
    """Let cumulative sums of whole numbers run in float32, which TensorRT takes (in place); exact below 2**24."""
    typed = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in [*typed.graph.input, *typed.graph.value_info]}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        kind = types.get(node.input[0]) if node.op_type == "CumSum" else None
        if kind in (TensorProto.INT32, TensorProto.INT64):
            source, target = node.input[0], node.output[0]
            node.input[0], node.output[0] = f"{target}/floats", f"{target}/sums"
            nodes += [
                helper.make_node("Cast", [source], [node.input[0]], name=f"{target}/to_float", to=TensorProto.FLOAT),
                node,
                helper.make_node("Cast", [node.output[0]], [target], name=f"{target}/to_int", to=kind),
            ]
        else:
            nodes.append(node)
    _replace_nodes(model.graph, nodes)


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # clearing the list would empty them
    del graph.node[:]
    graph.node.extend(kept)
    graph.ClearField("value_info")
