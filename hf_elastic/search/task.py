"""What a search algorithm has to know of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .encoding import Encoding
from .objectives import Constraint, Objective


def _nothing(places: np.ndarray) -> dict[str, np.ndarray]:
    return {}


def _anything(row: np.ndarray) -> bool:
    return True


class Task:
    """What is searched, and for what.

    Args:
        encoding: of the space.
        objectives: what is optimised.
        constraints: limits on values.
        known: rows `[N, G]` -> by name the values, `[N]`, that need no evaluation.
        is_allowed: row `[G]` -> whether it may be evaluated; may build the size, so it is asked last.

    Attributes:
        regressed: names of the wanted values that only an evaluation tells.
        is_limited: whether some constraint is on a value that needs no evaluation.
    """

    def __init__(
        self,
        encoding: Encoding,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        known: Callable[[np.ndarray], dict[str, np.ndarray]] = _nothing,
        is_allowed: Callable[[np.ndarray], bool] = _anything,
    ):
        self.encoding = encoding
        self.objectives = list(objectives)
        self.constraints = list(constraints)
        self.known = known
        self.is_allowed = is_allowed
        names = dict.fromkeys([*(one.name for one in self.objectives), *(one.name for one in self.constraints)])
        free = known(encoding.diagonal(2))
        self.regressed = [name for name in names if name not in free]
        self.is_limited = any(one.name in free for one in self.constraints)

    def sign(self, name: str) -> int:
        """1 if a value is minimised, -1 if it is maximised, 0 if it is only constrained."""
        return next((objective.sign for objective in self.objectives if objective.name == name), 0)

    def costs(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The objectives, signed so that smaller is better, `[N, M]`."""
        return np.stack([objective.sign * values[objective.name] for objective in self.objectives], axis=1)

    def violation(self, values: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """How much the constraints on these values are broken, each relative to its limit, `[count]`; 0 where they are kept."""
        broken = [np.maximum(one.violation(values[one.name]), 0) for one in self.constraints if one.name in values]
        return sum(broken, np.zeros(count))
