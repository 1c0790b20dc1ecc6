"""How weights are laid out in memory."""

from __future__ import annotations

import torch
from torch import nn

from .layout import Layout

MEMORY_LAYOUTS = ("prefix", "standard")


def set_memory_layout(model: nn.Module, layout: Layout, axes: set[str], name: str) -> None:
    """Store weights so that the prefixes that `axes` cut are contiguous in memory, or as usual; shapes and values stay.

    A prefix of a matrix's second dimension is strided, and strided operands cost a CPU 1.1x to 1.5x at small batches.
    Storing just those matrices transposed makes the prefix contiguous. Training is faster with the usual layout, in which
    autograd makes gradients.
    """
    for entry in layout.entries:
        if len(entry.dims) != 2 or not entry.use:
            continue
        cuts = [any(axis in segment for segment in dim for axis in axes) for dim in entry.dims]
        owner, _, key = entry.name.rpartition(".")
        parameter = model.get_submodule(owner)._parameters[key]
        # Sharded and meta tensors stay as they are.
        if cuts == [False, True] and type(parameter.data) is torch.Tensor and not parameter.is_meta:
            data = parameter.data
            parameter.data = data.t().contiguous().t() if name == "prefix" else data.contiguous()
