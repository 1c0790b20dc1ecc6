"""Limits on counts that no size of a space keeps, or that every one does: known before anything is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.errors import UserError
from ..core.space import Space, Subnet, end_of
from ..measure.values import FLOPS, PARAMETERS
from .objectives import Constraint, number


def check_caps(space: Space, constraints: Sequence[Constraint], count: Callable[[str, Subnet], float]) -> None:
    """Refuse an upper limit on parameters or FLOPs that is out of the reach of a space.

    Args:
        space: what is searched.
        constraints: of the search; those on other values are passed over.
        count: name and subnet -> the value.

    Raises:
        UserError: a limit is below the smallest size, whose value is said, or above the largest.
    """
    for one in constraints:
        if one.relation != "<=" or one.name not in (PARAMETERS, FLOPS):
            continue
        low, smallest = _end(space, 0, lambda subnet, name=one.name: count(name, subnet))
        if one.limit < low:
            raise UserError(
                f"no subnet keeps {one}, the nearest has {one.name}={number(low)}; it is the smallest of the space: {smallest}"
            )
        high, _ = _end(space, -1, lambda subnet, name=one.name: count(name, subnet))
        if one.limit > high:
            raise UserError(f"constraint {one} is above the largest size of the space, which has {one.name}={number(high)}")


def _end(space: Space, place: int, count: Callable[[Subnet], float]) -> tuple[float, Subnet]:
    """The least (0) or the most (-1) that a size of a space has, and that size.

    Names are in no order: of each gene with names the best one is found, since layers add up, one does not depend on another.
    """
    genes = space.genes()
    chosen = {gene: end_of(choices, place) for gene, choices in genes.items()}
    pick = max if place else min
    for gene, choices in genes.items():
        if isinstance(choices[0], str) and len(choices) > 1:
            chosen[gene] = pick(choices, key=lambda name, gene=gene: count(space.from_genes({**chosen, gene: name})))
    subnet = space.from_genes(chosen)
    return count(subnet), subnet
