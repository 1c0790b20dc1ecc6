"""A model as an ONNX graph."""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..core.errors import UserError
from .cache import cache_axes, open_head_axes, sample_step
from .exporters import OPSET, Axes, check_opset, staged_graph, weight_file, write_graph
from .optimize import check_level, fuses, optimize_graph

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Axis names by rank; a multiple-choice model takes one more axis.
AXIS_NAMES = {2: ("batch_size", "sequence_length"), 3: ("batch_size", "num_choices", "sequence_length")}


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
    model returns without its cache (`logits` where there is one); with `cache`, see `hf_elastic/graphs/cache.py`. It is traced
    in eval mode; the model is left as it was.

    Args:
        model: a transformers model with float32 parameters of any shape and strides.
        inputs: one real batch, as a tokenizer returns it: `int64[batch, sequence]` each
            (`[batch, choices, sequence]` for multiple choice), on the model's device. Only its names and shapes matter.
        path: the file to write. Weights above 2 GB go to `<path>_data` beside it, as the format demands.
        cache: for a causal model: take and return the key-value cache, and take `position_ids` where the model does.
        opset: version of ONNX's operators.
        optimize: "O1" to "O4", see `hf_elastic/graphs/optimize.py`; None for the plain graph, which any runtime reads.

    Returns:
        `path`.

    Raises:
        ValueError: for an input the model does not take, weights that are no real float32 parameters, an architecture which
            the installed exporter does not know, an unknown `optimize`, or an opset that is too old for the model or too new
            for the exporter.
        ImportError: if the exporter is not installed; it names the extra.
    """
    path = Path(path)
    check_inputs(model, inputs)
    check_weights(model)
    check_level(optimize, model.config.model_type)
    check_opset(opset)
    training = model.training
    model.eval()
    try:
        with staged_graph(path) as staged, quiet():
            sample, axes = _cached_sample(model, inputs) if cache else _plain_sample(inputs)
            write_graph(model, sample, axes, staged, opset=opset, fuse=fuses(optimize))
            if optimize is not None:
                if weight_file(staged).exists():
                    raise UserError(f"optimize: {optimize} takes models of at most 2 GB in one file; leave it out")
                optimize_graph(staged, optimize, model.config)
            if cache:
                heads = model.config.num_attention_heads  # of our own architectures perhaps a list, which is no one number
                size = (heads, model.config.hidden_size // heads) if isinstance(heads, int) else ()
                open_head_axes(staged, sample, *size)
    finally:
        model.train(training)
    return path


def _plain_sample(inputs: Mapping[str, torch.Tensor]) -> tuple[dict, Axes]:
    sample = {name: at_least_two(tensor) for name, tensor in inputs.items()}
    return sample, {name: dict(enumerate(AXIS_NAMES[tensor.dim()])) for name, tensor in sample.items()}


def _cached_sample(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> tuple[dict, Axes]:
    sample = sample_step(model, inputs)
    return sample, cache_axes(sample)[0]


def check_inputs(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for inputs that `model` does not take, or whose shapes differ."""
    accepted = [name for name in INPUT_NAMES if name in inspect.signature(model.forward).parameters]
    unknown = [name for name in inputs if name not in accepted]
    if unknown:
        raise UserError(f"{type(model).__name__} cannot be exported with the inputs {unknown}; it takes {accepted}")
    if "input_ids" not in inputs:
        raise UserError(f"the inputs need input_ids, got {list(inputs)}")
    for name, tensor in inputs.items():
        if tensor.shape != inputs["input_ids"].shape or tensor.dim() not in AXIS_NAMES:
            raise UserError(
                f"{name} has shape {list(tensor.shape)}; every input must be [batch, sequence] or [batch, choices, sequence], "
                f"the same as input_ids, which has {list(inputs['input_ids'].shape)}"
            )


def check_weights(model: PreTrainedModel) -> None:
    """Raise ValueError unless all weights are real float32 parameters."""
    if next(model.parameters(), None) is None:
        raise UserError(f"{type(model).__name__} has no parameters; tensors set as plain attributes cannot be exported")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.is_meta:
            raise UserError(f"{name} is {parameter.dtype} on {parameter.device}; export needs real torch.float32: model.float()")


def at_least_two(tensor: torch.Tensor) -> torch.Tensor:
    """Repeat axes of size 1: a tracer takes a 1 for a constant, and the exported axis would not be open."""
    return tensor.repeat([2 if size == 1 else 1 for size in tensor.shape])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the progress prints, trace warnings and package hints of the exporters: none asks for an action."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
