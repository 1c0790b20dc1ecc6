"""Evolution of single-path supernets (Guo et al. 2020, arXiv 1904.00420, algorithm 1), which ELM searches with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..task import Task
from .base import Algorithm
from .surrogate import random_rows

MUTATION = 0.1  # probability that a gene of a mutated child is drawn anew
PARENTS = 0.2  # of a population: 10 of 50
DRAWS = 100  # batches of children looked at to find enough that are new and allowed


class Evolution(Algorithm):
    """The first population is random; half of every later one are mutations of the best sizes so far, half crossovers of two.

    Sizes are compared by the first objective. ELM (arXiv 2510.27037) has a population of 50 and 40 generations
    (`population_size: 50`, `n_trials: 2000`) and mutates with probability 0.1; that ten are parents is Guo et al.'s. What
    breaks a limit that is known without an evaluation, as a cap on parameters, is never evaluated.
    """

    def __init__(self, task: Task, population_size: int, seed: int):
        self.task = task
        self.generator = np.random.default_rng(seed)
        self._parents = max(2, round(PARENTS * population_size))
        self._asked: set[bytes] = set()
        self._told: list[tuple[float, float, np.ndarray]] = []  # problems, cost, row

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """See `Algorithm`."""
        goal = self.task.objectives[0]
        self._asked.add(row.tobytes())
        if goal.name in values:
            self._told.append((problems, goal.sign * values[goal.name], row))

    def ask(self, count: int) -> np.ndarray:
        """See `Algorithm`; none was asked or told before."""
        best = sorted(self._told, key=lambda one: one[:2])[: self._parents]
        chosen: list[np.ndarray] = []
        for _ in range(DRAWS):
            if len(chosen) == count:
                break
            rows = self._children(np.array([row for _, _, row in best]), count) if len(best) == self._parents else None
            for row in random_rows(self.task, self.generator, count) if rows is None else rows:
                if len(chosen) < count and row.tobytes() not in self._asked:
                    self._asked.add(row.tobytes())
                    chosen += [row] if self.task.is_allowed(row) else []
        return np.array(chosen, dtype=int).reshape(len(chosen), len(self.task.encoding))

    def _children(self, parents: np.ndarray, count: int) -> np.ndarray:
        """Children of the parents in random order, `[count, G]`: every other one is mutated, the others are crossed over."""
        encoding, generator = self.task.encoding, self.generator
        one, two = parents[generator.integers(len(parents), size=(2, count))]
        drawn = generator.integers(0, encoding.counts, size=one.shape)
        mutated = np.where(generator.random(one.shape) < MUTATION, drawn, one)
        crossed = np.where(generator.random(one.shape) < 0.5, two, one)
        return encoding.canonical(np.where(np.arange(count)[:, None] % 2 == 0, mutated, crossed))
