"""What chooses the sizes to evaluate: it is asked for some, and told what came out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from ..task import Task


class Algorithm(ABC):
    """What chooses the sizes to evaluate; rows are those of `Encoding`, canonical.

    Args:
        task: what is searched, and for what.
        population_size: sizes per batch.
        seed: of everything random.
    """

    @abstractmethod
    def __init__(self, task: Task, population_size: int, seed: int):
        """Begin."""

    @abstractmethod
    def ask(self, count: int) -> np.ndarray:
        """Up to `count` rows, `[<=count, G]`; some may have been asked or told before."""

    @abstractmethod
    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """Take in a row, whether it was asked for or not.

        Args:
            row: `[G]`.
            values: what is known of it by name; a value is missing only where there are problems.
            problems: how much is wrong with it, relative to the limits; 0 if nothing is.
        """
