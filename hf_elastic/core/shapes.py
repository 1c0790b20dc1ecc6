"""The notation of shapes: parsing it, solving it for the sizes of axes, and cutting tensors by it.

The notation is jaxtyping's, with products and sums: `"(heads head) hidden"` is a matrix whose rows are `heads` groups of
`head` rows; `"(2 ffn) hidden"` stacks two blocks of `ffn` rows; `"((kv group head)+(kv head)) hidden"` concatenates unequal
ones; `"(heads head) -> heads"` is a vector that is stored as `heads` rows. This is the only slicing code of the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from .errors import UserError

Factor = str | int
Segment = tuple[Factor, ...]  # factors multiplied, outermost first
Dim = tuple[Segment, ...]  # segments concatenated


class SpecError(UserError):
    """A Spec, a config and the tensors of a checkpoint do not fit together."""


def parse_stored(shape: str) -> tuple[tuple[Dim, ...], str | None]:
    """Parse a shape string into its dimensions, and the axis in whose rows a vector is stored, if it is.

    Raises:
        SpecError: as `parse`; or something else than a vector is stored in rows.
    """
    text, arrow, rows = shape.partition("->")
    dims = parse(text)
    if not arrow:
        return dims, None
    if len(dims) != 1 or not rows.strip().isidentifier():
        raise SpecError(f"only a vector can be stored as rows of one axis, not {shape!r}")
    return dims, rows.strip()


def parse(shape: str) -> tuple[Dim, ...]:
    """Parse a shape string into one Dim per dimension.

    Raises:
        SpecError: unbalanced parentheses, an empty group, or a character that is not part of the notation.
    """
    tokens = re.findall(r"[A-Za-z_]\w*|\d+|[()+]|\S", shape)
    dims, position = [], 0
    while position < len(tokens):
        if tokens[position] == "(":
            segments, position = _parse_sum(shape, tokens, position + 1)
            dims.append(segments)
        else:
            dims.append(((_factor(shape, tokens[position]),),))
            position += 1
    return tuple(dims)


def _parse_sum(shape: str, tokens: list[str], position: int) -> tuple[Dim, int]:
    """Read `product + product ... )` from `position`; return the segments and the position after the parenthesis."""
    segments: list[Segment] = []
    factors: list[Factor] = []
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token == "(":
            inner, position = _parse_sum(shape, tokens, position)
            if len(inner) != 1:
                raise SpecError(f"a sum cannot be a factor of a product, in the shape string {shape!r}")
            factors.extend(inner[0])
        elif token in "+)":
            if not factors:
                raise SpecError(f"empty group in the shape string {shape!r}")
            segments.append(tuple(factors))
            factors = []
            if token == ")":
                return tuple(segments), position
        else:
            factors.append(_factor(shape, token))
    raise SpecError(f"missing ')' in the shape string {shape!r}")


def _factor(shape: str, token: str) -> Factor:
    if token.isdigit() and int(token) > 0:
        return int(token)
    if not token.isidentifier():
        raise SpecError(f"unexpected {token!r} in the shape string {shape!r}")
    return token


def size(dim: Dim, sizes: Mapping[str, int]) -> int:
    """Length of a dimension under the given axis sizes."""
    return sum(prod(sizes[f] if isinstance(f, str) else f for f in segment) for segment in dim)


def axes_in(dims: Iterable[Dim]) -> set[str]:
    """Names of the axes that occur in some dimensions."""
    return {factor for dim in dims for segment in dim for factor in segment if isinstance(factor, str)}


def substitute(dims: tuple[Dim, ...], names: Mapping[str, str]) -> tuple[Dim, ...]:
    """The same dimensions with axes renamed."""
    return tuple(tuple(tuple(names.get(f, f) if isinstance(f, str) else f for f in s) for s in dim) for dim in dims)


def evaluate(expression: str, sizes: Mapping[str, int]) -> int | float:
    """Value of an expression: a product of axes and integers, its floor quotient by another, or such a value `^0.5`.

    Raises:
        SpecError: something that is neither an axis nor an integer.
    """
    base, _, exponent = expression.partition("^")
    over, slashes, under = base.partition("//")
    value = _product(expression, over, sizes)
    if slashes:
        value //= _product(expression, under, sizes)
    return value ** float(exponent) if exponent else value


def _product(expression: str, factors: str, sizes: Mapping[str, int]) -> int:
    if not factors.strip():
        raise SpecError(f"empty product in the expression {expression!r}")
    found = [_factor(expression, token) for token in factors.split()]
    if missing := [factor for factor in found if isinstance(factor, str) and factor not in sizes]:
        raise SpecError(
            f"no weight says how large the axis {missing[0]} is: layers were replaced, quantized perhaps, and cannot be cut; "
            "only the full size runs"
        )
    return prod(sizes[f] if isinstance(f, str) else f for f in found)


@dataclass(frozen=True)
class Equation:
    """`dim == value`, and where it comes from, for the error message."""

    dim: Dim
    value: int
    source: str


def solve(equations: Iterable[Equation]) -> dict[str, int]:
    """Find the size of every axis.

    Raises:
        SpecError: an equation has no positive integer solution, contradicts another, or leaves an axis open.
    """
    sizes: dict[str, int] = {}
    pending = list(equations)
    while pending:
        waiting = [equation for equation in pending if not _settle(equation, sizes)]
        if len(waiting) == len(pending):
            open_axes = sorted(axes_in(e.dim for e in waiting) - sizes.keys())
            raise SpecError(f"the sizes of the axes {', '.join(open_axes)} do not follow from the config and the tensors")
        pending = waiting
    return sizes


def _settle(equation: Equation, sizes: dict[str, int]) -> bool:
    """Solve an equation for its one unknown, or check it where there is none. False: more than one is unknown."""
    unknown = sorted(axes_in([equation.dim]) - sizes.keys())
    if len(unknown) > 1:
        return False
    if unknown:
        axis = unknown[0]
        constant = size(tuple(s for s in equation.dim if axis not in s), sizes)
        slope = size(tuple(s for s in equation.dim if axis in s), {**sizes, axis: 1})
        value, rest = divmod(equation.value - constant, slope)
        if rest or value <= 0:
            raise SpecError(_mismatch(equation, sizes))
        sizes[axis] = value
    elif size(equation.dim, sizes) != equation.value:
        raise SpecError(_mismatch(equation, sizes))
    return True


def _mismatch(equation: Equation, sizes: Mapping[str, int]) -> str:
    text = "+".join(" ".join(map(str, segment)) for segment in equation.dim)
    known = ", ".join(f"{axis}={sizes[axis]}" for axis in sorted(axes_in([equation.dim]) & sizes.keys()))
    return f"{equation.source} is {equation.value}, which does not fit ({text}) with {known or 'no axis known'}"


def chosen_indices(dim: Dim, full: Mapping[str, int], chosen: Mapping[str, np.ndarray]) -> np.ndarray:
    """Flat indices along `dim` when some axes are restricted to, or reordered as, `chosen` indices.

    Args:
        dim: the dimension.
        full: size of every axis.
        chosen: axis -> indices into it; an axis that is not named is taken whole.
    """
    offset, parts = 0, []
    for segment in dim:
        lengths = [full[f] if isinstance(f, str) else f for f in segment]
        picks = [chosen.get(f, np.arange(n)) if isinstance(f, str) else np.arange(n) for f, n in zip(segment, lengths)]
        grid = np.arange(prod(lengths)).reshape(lengths)
        parts.append(grid[np.ix_(*picks)].ravel() + offset)
        offset += grid.size
    return np.concatenate(parts)


def axis_index(dim: Dim, full: Mapping[str, int], axis: str) -> np.ndarray:
    """For each position along `dim`, its index along `axis`; -1 in a segment that does not have the axis."""
    parts = []
    for segment in dim:
        lengths = [full[f] if isinstance(f, str) else f for f in segment]
        grid = np.indices(lengths)[segment.index(axis)] if axis in segment else np.full(lengths, -1)
        parts.append(grid.ravel())
    return np.concatenate(parts)


# One step of a cut along a dimension: a prefix (an int: a view) or any other selection (a tensor of indices: a copy). A step
# without a dimension gives the whole another shape.
CutStep = tuple["int | None", "int | tuple[int, ...] | torch.Tensor"]


def plan_cut(
    dims: tuple[Dim, ...], full: Mapping[str, int], kept: Mapping[str, int], rows: str | None = None
) -> tuple[CutStep, ...]:
    """How to take the prefix `kept` of each axis of a tensor: at most one step per dimension, and its shape if it is stored
    in `rows`.

    A product whose outer axis is cut is a prefix of the dimension, so the cut is a view on the same storage. An inner axis
    (the heads of a fused `(3 heads head)`) leaves several pieces, which have to be copied together.
    """
    steps: list[CutStep] = []
    for position, dim in enumerate(dims):
        changed = {axis: np.arange(kept[axis]) for axis in axes_in([dim]) if kept.get(axis, full[axis]) != full[axis]}
        if not changed:
            continue
        indices = chosen_indices(dim, full, changed)
        is_prefix = indices[-1] == len(indices) - 1
        steps.append((position, len(indices) if is_prefix else torch.from_numpy(indices)))
    if rows is not None and (steps or kept.get(rows, full[rows]) != full[rows]):
        steps = [(None, (-1,)), *steps, (None, (kept.get(rows, full[rows]), -1))]
    return tuple(steps)


def cut(tensor: torch.Tensor, steps: tuple[CutStep, ...]) -> torch.Tensor:
    """Apply a planned cut; differentiable with respect to `tensor`."""
    for position, selection in steps:
        if position is None:
            tensor = tensor.reshape(selection)
        elif isinstance(selection, int):
            tensor = tensor.narrow(position, 0, selection)
        else:
            tensor = tensor.index_select(position, selection.to(tensor.device))
    return tensor


def permute(
    tensor: torch.Tensor, dims: tuple[Dim, ...], full: Mapping[str, int], order: Mapping[str, np.ndarray]
) -> torch.Tensor:
    """Reorder axes of a tensor, or choose from them (a copy): position `i` of an axis takes what was at `order[axis][i]`."""
    if tensor.dim() != len(dims):  # a vector that is stored in rows
        return permute(tensor.reshape(-1), dims, full, order).reshape(tensor.shape)
    for position, dim in enumerate(dims):
        if axes_in([dim]) & order.keys():
            indices = torch.from_numpy(chosen_indices(dim, full, order)).to(tensor.device)
            tensor = tensor.index_select(position, indices)
    return tensor
