"""What a search algorithm has to know of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .frontier import Objective
from .genes import Genes
from .objectives import Constraint


def _nothing(places: np.ndarray) -> dict[str, np.ndarray]:
    return {}


class Task:
    """What is searched, and for what.

    Args:
        genes: of the space.
        objectives: what is optimised.
        constraints: limits on values.
        known: rows `[N, G]` -> by name the values, `[N]`, that need no evaluation.
    """

    def __init__(
        self,
        genes: Genes,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        known: Callable[[np.ndarray], dict[str, np.ndarray]] = _nothing,
    ):
        self.genes = genes
        self.objectives = list(objectives)
        self.constraints = list(constraints)
        self.known = known
        names = dict.fromkeys([*(one.name for one in self.objectives), *(one.name for one in self.constraints)])
        free = known(genes.diagonal(2))
        self.regressed = [name for name in names if name not in free]

    def costs(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The objectives, signed so that smaller is better, `[N, M]`."""
        return np.stack([objective.sign * values[objective.name] for objective in self.objectives], axis=1)

    def violation(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """How much the constraints are broken, each relative to its limit, `[N]`; 0 where they are kept."""
        some = next(iter(values.values()))
        return sum((np.maximum(one.violation(values[one.name]), 0) for one in self.constraints), np.zeros(len(some)))
