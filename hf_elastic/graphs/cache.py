"""A causal model with its key-value cache as one graph, under the same names in both majors of transformers.

The graph takes `past_key_values.<layer>.key` and `.value`, `float32[batch, key-value heads, past, head size]` each, and returns
`present.<layer>.key` and `.value`, longer by the new tokens. A past of length 0 makes it the prefill, so there is one graph and
one copy of the weights. These are the names that Optimum's `ORTModelForCausalLM` looks for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..core.portable import cache_argument

PAST, PRESENT, PARTS = "past_key_values", "present", ("key", "value")
BATCH, NEW, OLD = "batch_size", "sequence_length", "past_sequence_length"
ALL = f"{OLD} + {NEW}"
# Tokens of the traced sample before and after the cut: all sizes differ, for a tracer takes equal ones for the same axis.
SAMPLE_ROWS, SAMPLE_OLD, SAMPLE_NEW = 2, 3, 5

Cache = dict[str, dict[str, torch.Tensor]]


class CachedDecoder(nn.Module):
    """A causal model with its cache as plain nested dicts: `torch.export` then names the graph's inputs and outputs as above.

    Args:
        model: any causal model of transformers that takes a `DynamicCache`.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids, attention_mask, past_key_values, position_ids=None) -> dict:
        """Logits `float[batch, new, vocabulary]` and the grown cache, of `int64[batch, new]` and `int64[batch, past + new]`."""
        lengths = [tensor.shape[2] for layer in past_key_values.values() for tensor in layer.values()]
        for length in lengths:  # the tracer cannot know that all layers have seen the same tokens
            torch._check(length == lengths[0])
        torch._check(attention_mask.shape[1] == lengths[0] + input_ids.shape[1])
        positions = {} if position_ids is None else {"position_ids": position_ids}
        # Whole layers only: a sliding layer drops tokens by a counter that a graph does not have. The mask does the sliding.
        cache = DynamicCache([(layer["key"], layer["value"]) for layer in past_key_values.values()])
        past = {cache_argument(self.model): cache}
        output = self.model(input_ids, attention_mask=attention_mask, use_cache=True, **past, **positions)
        return {"logits": output.logits, PRESENT: as_dict(output.past_key_values)}


def as_dict(cache: DynamicCache) -> Cache:
    """A cache as layer -> part -> tensor."""
    return {str(index): {"key": layer.keys, "value": layer.values} for index, layer in enumerate(cache.layers)}


def flatten(inputs: Mapping) -> dict[str, torch.Tensor]:
    """Nested inputs by the names that they have in the graph."""
    flat = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{below}": tensor for below, tensor in flatten(value).items()})
        else:
            flat[name] = value
    return flat


@torch.no_grad()
def sample_step(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict:
    """Inputs of a step that goes on from a cache, for a tracer: a few tokens of `inputs`, and the real cache of those before.

    Args:
        model: a causal model in eval mode.
        inputs: `input_ids` and perhaps more; only ids are taken.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` where the model takes them, and `past_key_values` as nested dicts.
    """
    ids = inputs["input_ids"].flatten()
    needed = SAMPLE_ROWS * (SAMPLE_OLD + SAMPLE_NEW)
    ids = ids.repeat(-(-needed // ids.numel()))[:needed].reshape(SAMPLE_ROWS, -1)
    mask = torch.ones_like(ids)
    old, new = ids[:, :SAMPLE_OLD], ids[:, SAMPLE_OLD:]
    cache = DynamicCache()
    model(old, attention_mask=mask[:, :SAMPLE_OLD], use_cache=True, **{cache_argument(model): cache})
    step = {"input_ids": new, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        step["position_ids"] = torch.arange(SAMPLE_OLD, ids.shape[1], device=ids.device).expand(SAMPLE_ROWS, -1).contiguous()
    return {**step, PAST: as_dict(cache)}


def cache_axes(step: Mapping) -> tuple[dict[str, dict[int, str]], dict[str, dict[int, str]]]:
    """The open axes of the graph's inputs and of its outputs, by name, of a sample as `sample_step` gives it."""
    inputs = {name: {0: BATCH, 1: NEW} for name in step if name != PAST}
    inputs["attention_mask"] = {0: BATCH, 1: ALL}
    names = [f"{layer}.{part}" for layer, parts in step[PAST].items() for part in parts]
    inputs.update({f"{PAST}.{name}": {0: BATCH, 2: OLD} for name in names})
    return inputs, {"logits": {0: BATCH, 1: NEW}, **{f"{PRESENT}.{name}": {0: BATCH, 2: ALL} for name in names}}


def open_head_axes(path: Path, step: Mapping, heads: int | None = None, head_size: int | None = None) -> None:
    """Let the first, empty cache have another number of heads than the graph, where layers differ from what a config says.

    `ORTModelForCausalLM` makes the first cache from the config, with `num_attention_heads` for some architectures that group
    (phi3, gemma2), and the same for all layers. Nothing is in that cache, so its other sizes do not matter, but
    onnxruntime compares them with the declared ones.

    Args:
        path: the graph, which is changed in place.
        step: the sample that it was traced on.
        heads, head_size: what the config says; None if it says nothing of this size.
    """
    import onnx

    if all(tensor.shape[1] == heads and tensor.shape[3] == head_size for tensor in flatten(step[PAST]).values()):
        return
    graph = onnx.load(path, load_external_data=False)
    for value in graph.graph.input:
        if value.name.startswith(f"{PAST}."):
            axes = value.type.tensor_type.shape.dim
            axes[1].dim_param, axes[3].dim_param = "num_heads", "head_size"
    onnx.save(graph, path)
