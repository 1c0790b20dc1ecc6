"""Which points no other point beats, and the volume that they dominate."""

from collections.abc import Sequence

import numpy

from .objectives import Objective
from .point import Point


def non_dominated(costs: numpy.ndarray) -> numpy.ndarray:
    """Which rows of costs no other row dominates: none is at most as large everywhere and smaller somewhere.

    Args:
        costs: "points objectives", all minimised.

    Returns:
        "points", boolean. Equal rows do not dominate each other.
    """
    # In lexicographic order a row can only be dominated by an earlier one, so each survivor is compared with the later ones.
    remaining = numpy.lexsort(costs.T[::-1])
    columns = numpy.ascontiguousarray(costs[remaining].T)
    position = 0
    while position < len(remaining):
        current, later = columns[:, position : position + 1], columns[:, position + 1 :]
        keep = (later < current).any(axis=0) | (later == current).all(axis=0)
        position += 1
        if not keep.all():
            keep = numpy.concatenate([numpy.ones(position, dtype=bool), keep])
            columns, remaining = columns[:, keep], remaining[keep]
    mask = numpy.zeros(len(costs), dtype=bool)
    mask[remaining] = True
    return mask


def signed_costs(objectives: Sequence[Objective], points: Sequence[Point]) -> numpy.ndarray:
    """Values as "points objectives", signed so that smaller is better."""
    rows = [[objective.sign * point.values[objective.name] for objective in objectives] for point in points]
    return numpy.array(rows, dtype=float).reshape(len(points), len(objectives))


def sliced_volume(costs: numpy.ndarray, worst: numpy.ndarray) -> float:
    """Volume dominated by the rows of costs, all below worst: slabs along the last objective times their cross-sections."""
    if len(costs) == 0:
        return 0.0
    if costs.shape[1] == 1:
        return worst[0] - costs.min()
    costs = costs[numpy.argsort(costs[:, -1])]
    thickness = numpy.diff(costs[:, -1], append=worst[-1])
    if costs.shape[1] == 2:
        return ((worst[0] - numpy.minimum.accumulate(costs[:, 0])) * thickness).sum()
    return sum(slab * sliced_volume(costs[: i + 1, :-1], worst[:-1]) for i, slab in enumerate(thickness) if slab > 0)
