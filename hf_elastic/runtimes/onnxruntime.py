"""ONNX graphs on onnxruntime."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..core.errors import UserError
from ..graphs.exporters import missing_extra
from ..utils.options import check_integers
from .decoding import first_inputs

try:
    import onnxruntime
except ImportError as error:
    raise missing_extra(error) from error

NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(float)": np.float32}


class OnnxRunner:
    """An ONNX file loaded into onnxruntime on the CPU.

    Args:
        path: the file.
        threads: threads within one operator; `None` takes onnxruntime's default (all cores).

    Raises:
        ValueError: if `path` is not a file or `threads` is below 1.
    """

    def __init__(self, path: Path, threads: int | None = None):
        if not Path(path).is_file():
            raise UserError(f"{path} is not a file")
        options = onnxruntime.SessionOptions()
        check_integers(1, or_none=True, threads=threads)
        if threads is not None:
            options.intra_op_num_threads = threads
        if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":  # torch's threads sleep while they wait: so do these
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: NUMPY_TYPES[node.type] for node in self.session.get_inputs()}
        self.outputs = [node.name for node in self.session.get_outputs()]
        self.shapes = {node.name: node.shape for node in [*self.session.get_inputs(), *self.session.get_outputs()]}

    def __call__(self, inputs: Mapping[str, torch.Tensor | np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph.

        Args:
            inputs: tensors or arrays by name; those which the graph does not take are dropped. A cache that is not given is
                empty, and `position_ids` are counted from the attention mask.

        Returns:
            The outputs by name, e.g. `logits` as `float32[batch, classes]`.

        Raises:
            ValueError: if an input of the graph is missing.
        """
        return dict(zip(self.outputs, self.session.run(self.outputs, self.feed(inputs))))

    def feed(self, inputs: Mapping[str, torch.Tensor | np.ndarray]) -> dict[str, np.ndarray]:
        """What `__call__` gives to the session: the arrays of all inputs of the graph, in its types."""
        arrays = {name: torch.as_tensor(value).numpy(force=True) for name, value in inputs.items()}
        if "input_ids" in arrays and "attention_mask" in arrays:
            arrays.update(first_inputs(self.inputs, self.shapes, arrays))
        missing = [name for name in self.inputs if name not in arrays]
        if missing:
            raise UserError(f"the graph needs the inputs {missing}; got {list(inputs)}")
        return {name: np.asarray(arrays[name], dtype) for name, dtype in self.inputs.items()}
