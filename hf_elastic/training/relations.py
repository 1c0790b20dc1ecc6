"""The queries, keys and values of a model's last layer, whatever its architecture calls and fuses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import UserError
from ..core.layout import Layout
from ..core.shapes import Dim, axes_in

ROLES = ("query", "key", "value")


class Projections:
    """Finds the projections of the last layer from the Spec's shape strings.

    A projection is a matrix from `hidden` to something with attention heads. Fused ones come in the order query, key, value:
    as three segments, or as one with a factor 3; separate ones are told apart by the first letter of their names.

    Args:
        layout: of the full model.
        model: the full stock model, for the types of its modules.

    Raises:
        UserError: the last layer has no such projections.
    """

    def __init__(self, layout: Layout, model: nn.Module):
        self.layout = layout
        self._found: list[tuple[str, Dim]] = []
        for entry in layout.entries:
            if entry.layer != layout.num_layers - 1 or len(entry.dims) != 2 or not entry.rest.endswith(".weight"):
                continue
            path = entry.name.removesuffix(".weight")
            inward, outward = entry.dims if isinstance(model.get_submodule(path), Conv1D) else reversed(entry.dims)
            if entry.choice is not None:
                raise UserError(
                    f"relations: the last layer's queries, keys and values depend on its {entry.choice.split('=')[0]}"
                )
            if inward == (("hidden",),) and axes_in([outward]) & layout.spec.attention_axes:
                # An adapter wraps the projection: its output is the wrapper's.
                self._found.append((entry.rest.removesuffix(".weight").removesuffix(".base_layer"), outward))
        found = {role for path, dim in self._found for role in _roles(path, dim)}
        if found != set(ROLES):
            raise UserError(f"no queries, keys and values in the last layer of {type(model).__name__}, only {sorted(found)}")

    def check_heads(self, heads: int, cuts) -> None:
        """Raise UserError unless `heads` relation heads divide the width of every projection in every cut."""
        for cut in cuts:
            for path, dim in self._found:
                for width in _widths(path, dim, self.layout.sizes(cut, len(cut.layers) - 1)).values():
                    if width % heads:
                        raise UserError(
                            f"relation_heads: {heads} does not divide {width}, the width of the queries, keys or values of "
                            f"{self.layout.subnet_of(cut).to_dict()}"
                        )

    @contextmanager
    def record(self, module: nn.Module, sizes: Mapping[str, int], depth: int) -> Iterator[dict[str, torch.Tensor]]:
        """Collect the projections of the forward calls made within.

        Args:
            module: the stock module that will run: the full model or a skeleton.
            sizes: its axis sizes in the last layer.
            depth: its number of layers.

        Yields:
            a dict that the forward fills: role -> `[batch, tokens, width]`.
        """
        collected: dict[str, torch.Tensor] = {}
        handles = []
        for path, dim in self._found:
            target = module.get_submodule(f"{self.layout.container}.{depth - 1}.{path}")

            def keep(_module, _args, output, path=path, dim=dim):
                collected.update(_split(output, path, dim, sizes))

            handles.append(target.register_forward_hook(keep))
        try:
            yield collected
        finally:
            for handle in handles:
                handle.remove()


def _roles(path: str, dim: Dim) -> tuple[str, ...]:
    if len(dim) == 3 or 3 in dim[0]:
        return ROLES
    letter = path.rpartition(".")[2][0]
    return tuple(role for role in ROLES if role[0] == letter)


def _lengths(segment, sizes: Mapping[str, int]) -> list[int]:
    return [sizes[factor] if isinstance(factor, str) else factor for factor in segment]


def _widths(path: str, dim: Dim, sizes: Mapping[str, int]) -> dict[str, int]:
    totals = [prod(_lengths(segment, sizes)) for segment in dim]
    roles = _roles(path, dim)
    return dict(zip(roles, [totals[0] // 3] * 3 if len(dim) == 1 and len(roles) == 3 else totals))


def _split(output: torch.Tensor, path: str, dim: Dim, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """A projection's output `[batch, tokens, all]` as role -> `[batch, tokens, width]`."""
    roles = _roles(path, dim)
    if len(roles) == 1:
        return {roles[0]: output}
    if len(dim) == 3:
        return dict(zip(roles, output.split([prod(_lengths(segment, sizes)) for segment in dim], dim=-1)))
    position = dim[0].index(3)
    grid = output.unflatten(-1, _lengths(dim[0], sizes))
    return {role: grid.select(2 + position, index).flatten(2) for index, role in enumerate(roles)}
