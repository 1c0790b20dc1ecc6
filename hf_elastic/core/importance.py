"""Rank heads, neurons and channels, and reorder the supernet so that every prefix is the best of its length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from .errors import UserError
from .shapes import Dim, axis_index, permute

IMPORTANCE = ("magnitude", "taylor", "none")

# For each axis that is reordered, the order in every layer: (axis, layer index or None for the whole model) -> indices.
Order = Mapping[tuple[str, "int | None"], np.ndarray]


def axis_scores(tensor: torch.Tensor, dims: tuple[Dim, ...], full: Mapping[str, int], axis: str) -> np.ndarray:
    """Sum a tensor of non-negative scores over everything but one axis.

    Returns:
        One score for each index of `axis`, `[full[axis]]`; zeros if the tensor does not have the axis.
    """
    total = np.zeros(full[axis])
    tensor = tensor if tensor.dim() == len(dims) else tensor.reshape(-1)  # a vector that is stored in rows
    for position, dim in enumerate(dims):
        if not any(axis in segment for segment in dim):
            continue
        sums = tensor.double().movedim(position, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor.double()
        index = axis_index(dim, full, axis)
        has_axis = index >= 0
        total += np.bincount(index[has_axis], sums.cpu().numpy()[has_axis], minlength=full[axis])
    return total


def importance_order(model, gradients: Mapping[str, torch.Tensor] | None = None) -> Order:
    """Order of heads, neurons and channels of an elastic model, most important first.

    The hidden channels of a headless model are what it returns, so they keep their order.

    Args:
        model: an elastic model.
        gradients: parameter name -> gradient of a loss. With it the score of a weight is `(w * g)^2`, the first-order Taylor
            estimate of what its removal changes (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning",
            eq. 8); without it `w^2`.
    """
    layout = model.layout
    parameters = dict(model.base.named_parameters())
    scores: dict[tuple[str, int | None], np.ndarray] = defaultdict(lambda: np.zeros(0))
    # Hidden channels are what a headless model returns: their order is part of its result.
    is_output = model.base.base_model is model.base
    reordered = [axis for axis in (*layout.layer_axes, *(() if is_output else layout.model_axes)) if axis != "head"]
    for entry in layout.entries:
        if entry.tied_to is not None:
            continue
        weight = parameters[entry.name].detach()
        squared = (weight if gradients is None else weight * gradients[entry.name]).float() ** 2
        for axis in reordered:
            if any(axis in segment for dim in entry.dims for segment in dim):
                key = (axis, entry.layer if axis in layout.layer_axes else None)
                score = axis_scores(squared, entry.dims, layout.full, axis)
                scores[key] = score + (scores[key] if len(scores[key]) else 0)
    # A stable sort keeps the checkpoint's order among equals, so that ranking twice changes nothing.
    return {key: np.argsort(-score, kind="stable") for key, score in scores.items()}


def gradients_of(model, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Root of the summed squares of each batch's gradient, of the full model without dropout, for `importance_order`.

    The checkpoint should have been trained for the task: the gradients of a new head say little.

    Args:
        model: an elastic model; its own gradients are cleared.
        batches: model inputs with labels, a few dozen.

    Raises:
        ValueError: there is no batch.
    """
    base = model.base
    training = base.training
    base.eval()
    squares = {name: torch.zeros_like(parameter) for name, parameter in base.named_parameters()}
    number = 0
    for batch in batches:
        number += 1
        base.zero_grad(set_to_none=True)
        with torch.enable_grad():
            base(**{key: value.to(base.device) for key, value in batch.items()}).loss.backward()
        for name, parameter in base.named_parameters():
            if parameter.grad is not None:
                squares[name] += parameter.grad**2
    base.zero_grad(set_to_none=True)
    base.train(training)
    if not number:
        raise UserError("importance: taylor needs at least one batch with labels")
    return {name: square.sqrt() for name, square in squares.items()}


@torch.no_grad()
def apply_order(model, order: Order) -> None:
    """Reorder the supernet in place; the full model computes what it did before.

    Args:
        model: an elastic model.
        order: as from `importance_order`.
    """
    layout = model.layout
    parameters = dict(model.base.named_parameters())
    for entry in layout.entries:
        if entry.tied_to is not None:
            continue
        moves = {axis: indices for (axis, layer), indices in order.items() if layer is None or layer == entry.layer}
        parameter = parameters[entry.name]
        parameter.copy_(permute(parameter, entry.dims, layout.full, moves))
