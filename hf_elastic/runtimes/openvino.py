"""IR and ONNX graphs on OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..core.errors import UserError
from ..graphs.exporters import missing_extra
from ..graphs.openvino import EXTRA

# OpenVINO's own choice is bfloat16 where the CPU has it, which loses digits that the other runtimes keep.
PRECISION = "f32"


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
            raise missing_extra(error, "OpenVINO", EXTRA) from error
        if not Path(path).is_file():
            raise UserError(f"{path} is not a file")
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
            raise UserError(f"the graph needs the inputs {lacking}; got {list(inputs)}")
        given = {name: inputs[name] for name in self.inputs}
        feed = {name: value if isinstance(value, np.ndarray) else value.numpy(force=True) for name, value in given.items()}
        results = self._request.infer(feed, share_inputs=True, share_outputs=True)
        return {name: results[place].copy() for place, name in enumerate(self.outputs)}  # the next call overwrites the buffers
