"""Evaluated points, and which of them no other beats: what a frontier is made of, and what pictures and tables show."""

from collections.abc import Mapping, Sequence

import numpy

from ..core.errors import UserError
from .objectives import Objective
from .pareto import non_dominated, signed_costs
from .point import Point


class TradeOff:
    """Points under objectives.

    Args:
        objectives: what was optimised.
        points: every evaluated point, feasible or not.
        facts: what the numbers depend on (machine, data set, seed), with values that JSON can hold.

    Attributes:
        objectives: as given.
        evaluated: the points as given.
        facts: as given.
        costs: of the feasible points, `[N, objectives]`, signed so that smaller is better.

    Raises:
        ValueError: no objectives, two of one name, or a feasible point without a value for one of them.
    """

    def __init__(self, objectives: Sequence[Objective], points: Sequence[Point], facts: Mapping | None = None):
        self.objectives = list(objectives)
        self.evaluated = list(points)
        self.facts = dict(facts or {})
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) != len(names):
            raise UserError(f"objectives must be at least one and differ in name, got {names}")
        feasible = [point for point in self.evaluated if point.feasible]
        for point in feasible:
            if missing := [name for name in names if name not in point.values]:
                raise UserError(f"feasible subnet {point.subnet} has no value for {missing}; it has {sorted(point.values)}")
        self.costs = signed_costs(self.objectives, feasible)
        second = self.objectives[min(1, len(names) - 1)].name
        front = [feasible[index] for index in numpy.flatnonzero(non_dominated(self.costs))]
        self._points = sorted(front, key=lambda point: point.values[second])

    @property
    def points(self) -> list[Point]:
        """The feasible points that no other dominates, by ascending second objective (the only one, if there is one)."""
        return list(self._points)
