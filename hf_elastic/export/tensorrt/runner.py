"""The stand-in for TensorRT: its graph in ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ...core.errors import UserError
from ..outputs import main_output

GRAPH, DESCRIPTION = "model.onnx", "tensorrt.json"


class CpuRunner:
    """The exported graph in ONNX Runtime on the CPU, for inputs of any shape that the profile covers in parts.

    Args:
        folder: what `write` wrote.
        pad_token: what fills up rows that are shorter than the profile's shortest.
    """

    def __init__(self, folder: Path, pad_token: int):
        import onnx

        from ...runtimes.onnxruntime import OnnxRunner
        from .graph import rounded_on_cpu

        record = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        kinds = record["profile"]
        self.rows = (kinds["min"]["batch_size"], kinds["max"]["batch_size"])
        self.tokens = (kinds["min"]["sequence_length"], kinds["max"]["sequence_length"])
        self.pad_token = pad_token
        if record["precision"] == "bf16":
            self.run = _unoptimized(rounded_on_cpu(onnx.load(folder / GRAPH)))
        else:
            self.run = OnnxRunner(folder / GRAPH)

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        """The main output, in the shape that the model gives for these inputs.

        Raises:
            ValueError: they have more tokens than the profile.
        """
        length = tensors["input_ids"].shape[1]
        if length > self.tokens[1]:
            raise UserError(f"max_sequence_length: {self.tokens[1]} is shorter than the {length} tokens to compare on")
        parts = [self._part(part, length) for part in self._parts(tensors)]
        return np.concatenate(parts)

    def _parts(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(tensors["input_ids"]), self.rows[1]):
            yield {name: tensor[start : start + self.rows[1]] for name, tensor in tensors.items()}

    def _part(self, tensors: Mapping[str, torch.Tensor], length: int) -> np.ndarray:
        count = len(tensors["input_ids"])
        rows, columns = max(0, self.rows[0] - count), max(0, self.tokens[0] - length)
        filled = {}
        for name, tensor in tensors.items():
            value = self.pad_token if name == "input_ids" else 0
            tensor = torch.nn.functional.pad(tensor, (0, columns), value=value)
            filled[name] = torch.cat([tensor, tensor[-1:].expand(rows, -1)])
        result = main_output(self.run(filled))[:count]
        # Of an output per token, those that were filled in go again.
        return result[:, :length] if columns and result.ndim > 2 and result.shape[1] == length + columns else result


def _unoptimized(model):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]

    def run(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return dict(zip(names[1], session.run(None, {name: tensors[name].numpy() for name in names[0]})))

    return run
