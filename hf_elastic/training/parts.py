"""What attention and what the feed-forward network of every layer writes, whatever an architecture calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import UserError
from ..core.layout import Cut, Layout
from ..core.shapes import axes_in

ATTENTION, FEED_FORWARD = ROLES = ("attention", "feed_forward")
# For each layer: role -> the axis of the channels, and `[batch, tokens, width]`.
Collected = list[dict[str, tuple[str, torch.Tensor]]]


class Parts:
    """Finds the last matrix of attention and of the feed-forward network of every layer from the Spec's shape strings.

    It maps what has attention heads, or the axis `ffn`, to channels of one axis. Its output is taken before it is added to the
    residual, so that it means the same in a pre-norm and in a post-norm layer.

    Args:
        layout: of the full model.
        model: the full stock model, for the types of its modules; it may be cut to one size.

    Attributes:
        axes: axes of the channels.

    Raises:
        UserError: a layer, or a choice in it, has no such matrix.
    """

    def __init__(self, layout: Layout, model: nn.Module):
        self.layout = layout
        places = ((layout.spec.layer_of(name), module) for name, module in model.named_modules())
        kinds = {place[2]: type(module) for place, module in places if place}
        # (layer, choice) -> role -> (path within the layer, axis)
        self._found: dict[tuple[int, str | None], dict[str, tuple[str, str]]] = {}
        held: dict[tuple[int, str | None], None] = {}
        for entry in layout.entries:
            if entry.layer is None:
                continue
            place = (entry.layer, entry.choice)
            held[place] = None
            path = entry.rest.removesuffix(".weight")
            if len(entry.dims) != 2 or path not in kinds:
                continue
            inward, outward = entry.dims if issubclass(kinds[path], Conv1D) else reversed(entry.dims)
            role = self._role(axes_in([inward]))
            if role is not None and len(outward) == len(outward[0]) == 1 and isinstance(outward[0][0], str):
                # An adapter wraps the matrix: its output is the wrapper's.
                self._found.setdefault(place, {})[role] = (path.removesuffix(".base_layer"), outward[0][0])
        self.axes = {axis for found in self._found.values() for _, axis in found.values()}
        self._check(list(held))

    def _role(self, inward: set[str]) -> str | None:
        if inward & self.layout.spec.attention_axes:
            return ATTENTION
        return FEED_FORWARD if inward == {"ffn"} else None

    def _check(self, held: list[tuple[int, str | None]]) -> None:
        excludes = self.layout.choices.exclude
        for layer, choice in held:
            if choice is None and any(other[0] == layer and other[1] is not None for other in held):
                continue  # what all choices of a layer have
            found = [
                own
                for (at, other), own in self._found.items()
                if at == layer and not (choice and other and excludes(choice, other))
            ]
            missing = [role for role in ROLES if not any(role in own for own in found)]
            if missing:
                where = f"layer {layer}{f' with {choice}' if choice else ''}"
                raise UserError(f"pkd_parts: {where} has no matrix that ends its {missing[0].replace('_', '-')} part")

    @contextmanager
    def record(self, module: nn.Module, cut: Cut) -> Iterator[Collected]:
        """Collect the outputs of the forward calls made within.

        Args:
            module: the stock module that will run: the full model or a skeleton.
            cut: the size that it is.

        Yields:
            a list with an entry for each kept layer, which the forward fills.
        """
        collected: Collected = [{} for _ in cut.layers]
        handles = []
        for position, layer in enumerate(cut.layers):
            for (of, choice), found in self._found.items():
                if of != layer or (choice is not None and not cut.sizes(position)[choice]):
                    continue
                for role, (path, axis) in found.items():
                    target = module.get_submodule(f"{self.layout.container}.{position}.{path}")

                    def keep(_module, _args, output, into=collected[position], role=role, axis=axis):
                        into[role] = (axis, output)

                    handles.append(target.register_forward_hook(keep))
        try:
            yield collected
        finally:
            for handle in handles:
                handle.remove()
