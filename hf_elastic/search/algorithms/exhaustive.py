"""Every size once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from ..encoding import Encoding
from ..task import Task
from .base import Algorithm


class Exhaustive(Algorithm):
    """Every size once; those that are not allowed are left out."""

    def __init__(self, task: Task, population_size: int, seed: int):
        self._rows = (row for row in _all_rows(task.encoding) if task.is_allowed(row))

    def ask(self, count: int) -> np.ndarray:
        """See `Algorithm`; nothing when there is no more."""
        return np.array(list(itertools.islice(self._rows, count)))

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """Changes nothing."""


def _all_rows(encoding: Encoding) -> Iterator[np.ndarray]:
    for places in itertools.product(*map(range, encoding.counts)):
        row = np.array(places)
        # The genes of dropped layers are at 0 in one of the rows that stand for the same size.
        if np.array_equal(encoding.canonical(row[None])[0], row):
            yield row
