"""Algorithms that are samplers of Optuna."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ..task import Task
from .base import Algorithm

PROBLEMS = "problems"


class OptunaAlgorithm(Algorithm):
    """A sampler of Optuna, by ask and tell, in a study of its own in memory; a kind says which by `make_sampler`.

    What is shared by processes is what was found out, not the state of the sampler: each process tells its own sampler what
    all of them found, and one that starts again takes the same course again. The first rows that are asked for are on the
    diagonal.
    """

    def __init__(self, task: Task, population_size: int, seed: int):
        self._task = task
        sampler = self.make_sampler(population_size, seed)
        self._study = optuna.create_study(directions=[one.direction for one in task.objectives], sampler=sampler)
        self._open: dict[bytes, list[Trial]] = {}
        self._asked: set[bytes] = set()
        for row in task.encoding.diagonal(self.first_rows(population_size)):
            self._enqueue(row)

    @abstractmethod
    def make_sampler(self, population_size: int, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler; with several objectives it must handle them."""

    def first_rows(self, population_size: int) -> int:
        """How many rows of the diagonal are asked for first."""
        return max(2, population_size // 2)

    def ask(self, count: int) -> np.ndarray:
        """See `Algorithm`."""
        return np.array([self._ask() for _ in range(count)])

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """See `Algorithm`."""
        key = row.tobytes()
        if key not in self._asked:
            self._enqueue(row)
            self._ask()
        costs = [values.get(objective.name, 0.0) for objective in self._task.objectives]
        for trial in self._open.pop(key, ()):
            trial.set_user_attr(PROBLEMS, problems)
            # A value may be missing only where there are problems, and then only their sum decides.
            self._study.tell(trial, costs, state=TrialState.COMPLETE)

    def _enqueue(self, row: np.ndarray) -> None:
        self._study.enqueue_trial(dict(zip(self._task.encoding.choices, row.tolist())))

    def _ask(self) -> np.ndarray:
        trial = self._study.ask()
        # Places are plain integers, which Optuna takes for categories; the choices may be tuples.
        choices = self._task.encoding.choices
        places = {gene: trial.suggest_categorical(gene, list(range(len(options)))) for gene, options in choices.items()}
        row = self._task.encoding.row(places)
        self._open.setdefault(row.tobytes(), []).append(trial)
        self._asked.add(row.tobytes())
        return row


def broken(trial: FrozenTrial) -> tuple[float]:
    """How much is wrong with what a trial tried, as samplers want to hear it."""
    return (trial.user_attrs[PROBLEMS],)
