"""One table for the embedding and the output layer of a quantized graph whose weights are tied."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def share_tied_tables(prepared: Path, quantized: Path) -> None:
    """Store a table once that is looked up and, transposed, multiplied with: the quantizer makes two of a tied one.

    The product's stays, since it has a scale for each token; rows that are looked up are scaled by these too.
    """
    model = onnx.load(quantized)
    there = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {tensor.name: tensor for tensor in onnx.load(prepared).graph.initializer if len(tensor.dims) == 2}
    users = Counter(name for node in model.graph.node for name in node.input)
    tables = {node.input[0]: node for node in model.graph.node if node.op_type == "Gather" and users[node.input[0]] == 1}
    for table, product in itertools.permutations(weights, 2):
        parts = [f"{product}_{part}" for part in ("quantized", "scale", "zero_point")]
        looked_up = tables.get(f"{table}_quantized")
        if looked_up is None or any(name not in there for name in parts) or list(there[parts[1]].dims) != weights[table].dims[:1]:
            continue
        if np.array_equal(numpy_helper.to_array(weights[table]), numpy_helper.to_array(weights[product]).T):
            _share(model.graph, looked_up, there, parts)
    onnx.save(model, quantized)


def _share(graph, looked_up, there: Mapping, parts: list[str]) -> None:
    """Make a lookup in a table one in the transposed weight of a product, `parts` of which are its values, scales and zeros."""
    table, values = there[looked_up.input[0]], numpy_helper.to_array(there[parts[0]])
    graph.initializer.remove(there[parts[0]])
    table.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.T), table.name))
    scaled = next(node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] == looked_up.output[0])
    place, ids, rows = list(graph.node).index(scaled), looked_up.input[1], looked_up.output[0]
    make, last = onnx.helper.make_node, f"{rows}_last"
    nodes = [make("Cast", [rows], [f"{rows}_float"], to=1)]
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), last))
    for part in parts[1:]:
        nodes.append(make("Gather", [part, ids], [f"{part}_{rows}"]))
        nodes.append(make("Cast", [f"{part}_{rows}"], [f"{part}_{rows}_float"], to=1))
        nodes.append(make("Unsqueeze", [f"{part}_{rows}_float", last], [f"{part}_{rows}_each"]))
    nodes.append(make("Sub", [f"{rows}_float", f"{parts[2]}_{rows}_each"], [f"{rows}_centred"]))
    nodes.append(make("Mul", [f"{rows}_centred", f"{parts[1]}_{rows}_each"], [scaled.output[0]]))
    graph.node.remove(scaled)
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)
    graph.node.insert(0, make("Transpose", [table.name], [parts[0]], perm=[1, 0]))
    used = {name for node in graph.node for name in node.input}
    for name in set(scaled.input) & there.keys() - used:
        graph.initializer.remove(there[name])
