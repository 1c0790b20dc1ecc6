"""ONNX: write a model as one file, and run such files on onnxruntime."""

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..checks import check_integers
from ._onnx_backend import OPSET, Axes, check_opset, missing_extra, move_export, weight_file, write_graph
from .cache import cache_axes, open_head_axes, sample_step
from .decoding import first_inputs
from .optimize import check_level, fuses, optimize_graph

try:
    import onnxruntime
except ImportError as error:
    raise missing_extra(error) from error

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Axis names by rank; a multiple-choice model takes one more axis.
AXIS_NAMES = {2: ("batch_size", "sequence_length"), 3: ("batch_size", "num_choices", "sequence_length")}
NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(float)": np.float32}


def export_onnx(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    path: Path,
    *,
    cache: bool = False,
    opset: int = OPSET,
    optimize: str | None = None,
) -> Path:
    """Write `model` as an ONNX graph in float32, with open batch and sequence axes.

    The graph takes exactly the given inputs, in any batch size and length the model itself takes, and returns what the
    model returns without its cache (`logits` where there is one); with `cache`, see `hf_elastic/export/cache.py`. It is traced
    in eval mode; the model is left as it was.

    Args:
        model: a transformers model with float32 parameters of any shape and strides.
        inputs: one real batch, as a tokenizer returns it: `int64[batch, sequence]` each
            (`[batch, choices, sequence]` for multiple choice), on the model's device. Only its names and shapes matter.
        path: the file to write. Weights above 2 GB go to `<path>_data` beside it, as the format demands.
        cache: for a causal model: take and return the key-value cache, and take `position_ids` where the model does.
        opset: version of ONNX's operators.
        optimize: "O1" to "O4", see `hf_elastic/export/optimize.py`; None for the plain graph, which any runtime reads.

    Returns:
        `path`.

    Raises:
        ValueError: for an input the model does not take, weights that are no real float32 parameters, an architecture which
            the installed exporter does not know, an unknown `optimize`, or an opset that is too old for the model or too new
            for the exporter.
        ImportError: if the exporter is not installed; it names the extra.
    """
    path = Path(path)
    _check_inputs(model, inputs)
    _check_weights(model)
    check_level(optimize, model.config.model_type)
    check_opset(opset)
    path.parent.mkdir(parents=True, exist_ok=True)
    training = model.training
    model.eval()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as staging, _quiet():
            staged = Path(staging) / path.name
            sample, axes = _cached_sample(model, inputs) if cache else _plain_sample(inputs)
            write_graph(model, sample, axes, staged, opset=opset, fuse=fuses(optimize))
            if optimize is not None:
                if weight_file(staged).exists():
                    raise ValueError(f"optimize: {optimize} takes models of at most 2 GB in one file; leave it out")
                optimize_graph(staged, optimize, model.config)
            if cache:
                heads = model.config.num_attention_heads
                open_head_axes(staged, sample, heads, model.config.hidden_size // heads)
            move_export(staged, path)
    finally:
        model.train(training)
    return path


def _plain_sample(inputs: Mapping[str, torch.Tensor]) -> tuple[dict, Axes]:
    sample = {name: _at_least_two(tensor) for name, tensor in inputs.items()}
    return sample, {name: dict(enumerate(AXIS_NAMES[tensor.dim()])) for name, tensor in sample.items()}


def _cached_sample(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> tuple[dict, Axes]:
    sample = sample_step(model, inputs)
    return sample, cache_axes(sample)[0]


def _check_inputs(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> None:
    accepted = [name for name in INPUT_NAMES if name in inspect.signature(model.forward).parameters]
    unknown = [name for name in inputs if name not in accepted]
    if unknown:
        raise ValueError(f"{type(model).__name__} cannot be exported with the inputs {unknown}; it takes {accepted}")
    if "input_ids" not in inputs:
        raise ValueError(f"the inputs need input_ids, got {list(inputs)}")
    for name, tensor in inputs.items():
        if tensor.shape != inputs["input_ids"].shape or tensor.dim() not in AXIS_NAMES:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; every input must be [batch, sequence] or [batch, choices, sequence], "
                f"the same as input_ids, which has {list(inputs['input_ids'].shape)}"
            )


def _check_weights(model: PreTrainedModel) -> None:
    if next(model.parameters(), None) is None:
        raise ValueError(f"{type(model).__name__} has no parameters; tensors set as plain attributes cannot be exported")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.is_meta:
            raise ValueError(f"{name} is {parameter.dtype} on {parameter.device}; export needs real torch.float32: model.float()")


def _at_least_two(tensor: torch.Tensor) -> torch.Tensor:
    """Repeat axes of size 1: a tracer takes a 1 for a constant, and the exported axis would not be open."""
    return tensor.repeat([2 if size == 1 else 1 for size in tensor.shape])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the progress prints, trace warnings and package hints of the exporters: none asks for an action."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")


class OnnxRunner:
    """An ONNX file loaded into onnxruntime on the CPU.

    Args:
        path: the file.
        threads: threads within one operator; `None` takes onnxruntime's default (all cores).

    Raises:
        ValueError: if `path` is not a file or `threads` is below 1.
    """

    def __init__(self, path: Path, threads: int | None = None):
        _check_file(Path(path))
        options = onnxruntime.SessionOptions()
        check_integers(1, or_none=True, threads=threads)
        if threads is not None:
            options.intra_op_num_threads = threads
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
            raise ValueError(f"the graph needs the inputs {missing}; got {list(inputs)}")
        return {name: np.asarray(arrays[name], dtype) for name, dtype in self.inputs.items()}
