"""What TensorRT reads of ONNX, by its published support matrix, and whether a graph stays within it.

The matrix is `operators.json`, a copy of the facts in `docs/operators.md` of onnx/onnx-tensorrt (its version and
licence are in the file). A graph that passes has only operators, types and operator sets of that table; whether an engine can be
built from it is known only where TensorRT runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ...core.errors import UserError

STANDARD_DOMAINS = ("", "ai.onnx")
# ONNX's name of a tensor type -> the matrix's.
TYPE_NAMES = {
    "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT4": "INT4", "INT8": "INT8", "INT32": "INT32",
    "INT64": "INT64", "UINT8": "UINT8", "BOOL": "BOOL", "FLOAT8E4M3FN": "FP8", "FLOAT4E2M1": "FP4",
}  # fmt: skip
# Whose type is that of the first output; of every other operator it is that of the data inputs.
MAKES_ITS_TYPE = ("Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "Range")
# Operator -> which inputs carry data, where that is not the first alone: not shapes, indices, or a condition.
DATA_INPUTS = {"Where": (1, 2)}
EVERY_INPUT = ("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Concat", "Equal", "Greater", "GreaterOrEqual", "Less",
               "LessOrEqual", "Max", "Min", "And", "Or", "Xor", "Pow")  # fmt: skip


@functools.cache
def operator_table() -> dict:
    """The support matrix: `tensorrt` (version), `opsets`, `operators` (name -> types), `unsupported`, and restrictions."""
    return json.loads(files(__package__).joinpath("operators.json").read_text(encoding="utf-8"))


@dataclass
class Scope:
    """What is known of the values that a node may read: those of its graph and of the graphs around it."""

    types: dict[str, int]
    constants: dict[str, np.ndarray | None]

    def inner(self, graph: GraphProto) -> Scope:
        """The scope of a graph within a node."""
        own = scope_of(graph)
        return Scope({**self.types, **own.types}, {**self.constants, **own.constants})


def scope_of(graph: GraphProto) -> Scope:
    """Types and constants of one graph. The value of a large constant is None: only small ones are ever asked for."""
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output, *graph.value_info]}
    constants = {}
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
        constants[tensor.name] = _small(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            types[node.output[0]] = node.attribute[0].t.data_type
            constants[node.output[0]] = _small(node.attribute[0].t)
    return Scope(types, constants)


def _small(tensor: TensorProto) -> np.ndarray | None:
    return onnx.numpy_helper.to_array(tensor) if np.prod(tensor.dims) <= 2**16 and not tensor.external_data else None


def problems(model: ModelProto) -> Iterator[str]:
    """What of a graph is not in TensorRT's support matrix, in words: operator, node, and why.

    Looks into the graphs within `If` and `Loop` and into local functions. Types are those that ONNX's shape inference finds.

    Args:
        model: a complete model; its weights may be in another file.
    """
    table = operator_table()
    oldest, newest = table["opsets"]
    for opset in model.opset_import:
        if opset.domain in STANDARD_DOMAINS and not oldest <= opset.version <= newest:
            yield f"opset {opset.version} is outside {oldest} to {newest}, which TensorRT {table['tensorrt']} reads"
    typed = onnx.shape_inference.infer_shapes(model)
    local = {(function.domain, function.name) for function in model.functions}
    yield from _graph_problems(typed.graph.node, scope_of(typed.graph), local)
    for function in model.functions:  # types within are those of the caller: only names can be checked
        for node in function.node:
            yield from _name_problems(node, local)


def _graph_problems(nodes, scope: Scope, local: set) -> Iterator[str]:
    for node in nodes:
        named = list(_name_problems(node, local))
        yield from named
        if not named and (node.domain, node.op_type) not in local:
            yield from _type_problems(node, scope)
            yield from _constant_problems(node, scope)
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graph_problems(graph.node, scope.inner(graph), local)


def _name_problems(node: NodeProto, local: set) -> Iterator[str]:
    if (node.domain, node.op_type) in local:
        return
    if node.domain not in STANDARD_DOMAINS:
        yield f"{_where(node)}: operators of the domain {node.domain!r} are not TensorRT's"
    elif node.op_type not in operator_table()["operators"]:
        yield f"{_where(node)}: TensorRT {operator_table()['tensorrt']} does not support the operator"


def _type_problems(node: NodeProto, scope: Scope) -> Iterator[str]:
    if node.op_type in MAKES_ITS_TYPE:
        names = [*node.output[:1], *(node.input[:1] if node.op_type == "Cast" else [])]
    elif node.op_type in EVERY_INPUT:
        names = list(node.input)
    else:
        names = [node.input[i] for i in DATA_INPUTS.get(node.op_type, (0,)) if i < len(node.input)]
    allowed = operator_table()["operators"][node.op_type]
    for name in dict.fromkeys(filter(None, names)):
        number = scope.types.get(name, TensorProto.UNDEFINED)
        if number == TensorProto.UNDEFINED:
            yield f"{_where(node)}: the type of {name!r} is unknown, so that it cannot be checked"
            continue
        kind = TensorProto.DataType.Name(number)
        if TYPE_NAMES.get(kind, kind) not in allowed:
            yield f"{_where(node)}: TensorRT does not take {TYPE_NAMES.get(kind, kind)} here, only {', '.join(allowed)}"


def _constant_problems(node: NodeProto, scope: Scope) -> Iterator[str]:
    table = operator_table()
    for kind in ("constant_inputs", "zero_inputs"):
        for position in table[kind].get(node.op_type, ()):
            if position >= len(node.input) or not node.input[position]:
                continue
            name = node.input[position]
            if name not in scope.constants:
                yield f"{_where(node)}: input {position} must be a constant"
            elif kind == "zero_inputs" and (scope.constants[name] is None or scope.constants[name].any()):
                yield f"{_where(node)}: input {position}, the zero point, must be zero"


def _where(node: NodeProto) -> str:
    return f"{node.op_type} ({node.name or 'node that makes ' + ', '.join(node.output)})"


def check_operators(model: ModelProto) -> Mapping[str, int]:
    """Operator -> how often it occurs in a graph that TensorRT's support matrix covers.

    Raises:
        ValueError: it does not; the message names up to three nodes with their operators, and how many more there are.
    """
    found = list(problems(model))
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(f"tensorrt: the graph is outside TensorRT's operator support: {'; '.join(found[:3])}{more}")
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))
