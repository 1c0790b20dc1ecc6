"""Rank heads, neurons and channels, and reorder the supernet so that every prefix is the best of its length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from transformers import AutoModel

from .activations import Batches, activation_energies
from .errors import UserError
from .layout import Place
from .shapes import Dim, axes_in, axis_index, permute

IMPORTANCE = ("activation", "magnitude", "taylor", "none")
# Those that look at calibration batches.
FROM_DATA = ("activation", "taylor")
# Where there is no data: what is best without.
WITHOUT_DATA = "magnitude"

# For each axis that is reordered, the order in every place: (axis, place) -> indices.
Order = Mapping[tuple[str, Place], np.ndarray]
# Query heads, those that share a key-value head side by side: the axes of both as one.
QUERIES = "kv group"


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


def ranked_axes(model) -> set[str]:
    """The axes of an elastic model that are reordered: those that a size of its space, or a named one, cuts.

    Channels within a head belong together, and the hidden channels of a headless model are what it returns: they keep their
    order.
    """
    layout = model.layout
    cuts = [model.resolve(subnet) for subnet in (*model.space.extremes(), *model.config.subnets.values())]
    sizes = {item for cut in cuts for items in (cut.shared, *cut.per_layer) for item in items}
    stored = axes_in(dim for entry in layout.entries for dim in entry.dims)  # heads are not, where they partition channels anew
    kept = {"head", *(layout.model_axes if model.base_auto_class is AutoModel else ())}
    return {axis for axis, size in sizes if size < layout.full[axis]} & stored & {*layout.layer_axes, *layout.model_axes} - kept


def importance_order(model, importance: str = "magnitude", batches: Batches | None = None) -> Order:
    """Order of heads, neurons and channels of an elastic model, most important first, on the axes that its sizes cut.

    Query heads that share keys and values are ranked among each other, each such group for itself; and so is what only one of
    several choices has in a layer.

    Args:
        model: an elastic model.
        importance: the score of an index, summed over what belongs to it. "magnitude": `w^2` of its weights. "taylor": their
            `(w g)^2`, the first-order estimate of what removal does to a loss (Molchanov et al. 2019, "Importance Estimation for
            Neural Network Pruning", eq. 8). "activation": what it gives to the outputs of the layers that read it, see
            `activation_energies`. "none": all alike.
        batches: model inputs, for "taylor" with labels.

    Raises:
        UserError: for "activation" no linear layer that reads an axis has run; for what looks at batches, layers have choices of
            which only one runs.
    """
    axes = ranked_axes(model)
    if importance == "none" or not axes:
        return {}
    layout = model.layout
    if importance in FROM_DATA and layout.choices.are_open:
        raise UserError(f"importance: {importance!r} sees only what runs, which is one of several {', '.join(layout.choices)}")
    if importance == "activation":
        found = activation_energies(model.base, layout, batches, axes)
    else:
        found = _weight_scores(model, None if importance == "magnitude" else gradients_of(model, batches))
    full = _full(layout)
    ranked = {QUERIES if axis == "group" else axis for axis in axes}
    scores: dict[tuple[str, Place], np.ndarray] = {}
    for tensor, dims, place in found:
        for axis in ranked:
            shape = _join(dims) if axis == QUERIES else dims
            if axis in axes_in(shape):
                key = (axis, None if axis in layout.model_axes else place)
                scores[key] = axis_scores(tensor, shape, full, axis) + scores.get(key, 0)
    for entry in layout.entries:
        for axis in ranked & axes_in(_join(entry.dims) if QUERIES in ranked else entry.dims):
            place = None if axis in layout.model_axes else entry.place
            if (axis, place) not in scores:
                where = f"{axis} in layer {place}"
                raise UserError(f"importance: 'activation' finds no linear layer that reads {where}; take another ranking")
    # A stable sort keeps the checkpoint's order among equals, so that ranking twice changes nothing.
    order = {key: np.argsort(-score, kind="stable") for key, score in scores.items() if key[0] != QUERIES}
    for place in [place for axis, place in scores if axis == QUERIES]:
        score = scores[QUERIES, place].reshape(full["kv"], full["group"])
        first = np.arange(full[QUERIES]).reshape(score.shape)[:, :1] + np.argsort(-score, axis=1, kind="stable")
        order[QUERIES, place] = first[order.get(("kv", place), slice(None))].ravel()
    return order


def _join(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Dimensions in which key-value heads and the query heads of each are one axis."""
    return tuple(tuple(_joined(segment) for segment in dim) for dim in dims)


def _joined(segment: tuple) -> tuple:
    place = segment.index("group") if "group" in segment else 0
    return (*segment[: place - 1], QUERIES, *segment[place + 1 :]) if place else segment


def _full(layout) -> dict[str, int]:
    return {**layout.full, QUERIES: layout.full["kv"] * layout.full["group"]} if "group" in layout.full else dict(layout.full)


def _weight_scores(model, gradients: Mapping[str, torch.Tensor] | None) -> Iterator[tuple[torch.Tensor, tuple[Dim, ...], Place]]:
    parameters = dict(model.base.named_parameters())
    for entry in model.layout.entries:
        if entry.tied_to is None:
            weight = parameters[entry.name].detach()
            yield (weight if gradients is None else weight * gradients[entry.name]).float() ** 2, entry.dims, entry.place


def gradients_of(model, batches: Batches) -> dict[str, torch.Tensor]:
    """Root of the summed squares of each batch's gradient, of the full model without dropout.

    The checkpoint should have been trained for the task: the gradients of a new head say little.

    Args:
        model: an elastic model; its own gradients are cleared.
        batches: model inputs with labels, a few dozen.
    """
    base = model.base
    training = base.training
    base.eval()
    squares = {name: torch.zeros_like(parameter) for name, parameter in base.named_parameters()}
    for batch in batches:
        base.zero_grad(set_to_none=True)
        with torch.enable_grad():
            base(**{key: value.to(base.device) for key, value in batch.items()}).loss.backward()
        for name, parameter in base.named_parameters():
            if parameter.grad is not None:
                squares[name] += parameter.grad**2
    base.zero_grad(set_to_none=True)
    base.train(training)
    return {name: square.sqrt() for name, square in squares.items()}


@torch.no_grad()
def apply_order(model, order: Order) -> None:
    """Reorder the supernet in place; the full model computes what it did before.

    Args:
        model: an elastic model.
        order: as from `importance_order`.
    """
    full = _full(model.layout)
    parameters = dict(model.base.named_parameters())
    for entry in model.layout.entries:
        if entry.tied_to is not None:
            continue
        moves = {axis: indices for (axis, place), indices in order.items() if place is None or place == entry.place}
        parameter = parameters[entry.name]
        parameter.copy_(permute(parameter, _join(entry.dims) if QUERIES in moves else entry.dims, full, moves))
