"""Search algorithms by name: each is asked for sizes to evaluate, and told what came out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from ..encoding import Encoding
from ..task import Task
from .surrogate import Surrogate

PROBLEMS = "problems"


class Algorithm(Protocol):
    """What chooses the sizes to evaluate; rows are those of `Encoding`, canonical."""

    def ask(self, count: int) -> np.ndarray:
        """Up to `count` rows, `[<=count, G]`; some may have been asked or told before."""

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """Take in a row, whether it was asked for or not.

        Args:
            row: `[G]`.
            values: what is known of it by name; a value is missing only where there are problems.
            problems: how much is wrong with it, relative to the limits; 0 if nothing is.
        """


class OptunaAlgorithm:
    """A sampler of Optuna, by ask and tell, in a study of its own in memory.

    What is shared by processes is what was found out, not the state of the sampler: each process tells its own sampler what
    all of them found, and one that starts again takes the same course again.

    Args:
        task: what is searched, and for what.
        sampler: chooses; with several objectives it must handle them.
        start: rows asked for first, `[S, G]`.
    """

    def __init__(self, task: Task, sampler: optuna.samplers.BaseSampler, start: np.ndarray):
        self._task = task
        self._study = optuna.create_study(directions=[one.direction for one in task.objectives], sampler=sampler)
        self._open: dict[bytes, list[Trial]] = {}
        self._asked: set[bytes] = set()
        for row in start:
            self._enqueue(row)

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
        self._study.enqueue_trial(dict(zip(self._task.genes.choices, row.tolist())))

    def _ask(self) -> np.ndarray:
        trial = self._study.ask()
        # Places are plain integers, which Optuna takes for categories; the choices may be tuples.
        places = {gene: trial.suggest_categorical(gene, list(range(len(o)))) for gene, o in self._task.genes.choices.items()}
        row = self._task.genes.row(places)
        self._open.setdefault(row.tobytes(), []).append(trial)
        self._asked.add(row.tobytes())
        return row


class Exhaustive:
    """Every size once.

    Args:
        task: what is searched; sizes that are not allowed are left out.
    """

    def __init__(self, task: Task):
        self._rows = (row for row in _all_rows(task.genes) if task.is_allowed(row))

    def ask(self, count: int) -> np.ndarray:
        """See `Algorithm`; nothing when there is no more."""
        return np.array(list(itertools.islice(self._rows, count)))

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """Changes nothing."""


def _all_rows(genes: Encoding) -> Iterator[np.ndarray]:
    for places in itertools.product(*map(range, genes.counts)):
        row = np.array(places)
        # Encoding of dropped layers are at 0 in one of the rows that stand for the same size.
        if np.array_equal(genes.canonical(row[None])[0], row):
            yield row


def _broken(trial: optuna.trial.FrozenTrial) -> tuple[float]:
    return (trial.user_attrs[PROBLEMS],)


def _surrogate(task: Task, population_size: int, seed: int) -> Algorithm:
    return Surrogate(task, seed)


def _nsga2(task: Task, population_size: int, seed: int) -> Algorithm:
    sampler = optuna.samplers.NSGAIISampler(population_size=population_size, seed=seed, constraints_func=_broken)
    return OptunaAlgorithm(task, sampler, task.genes.diagonal(max(2, population_size // 2)))


def _nsga3(task: Task, population_size: int, seed: int) -> Algorithm:
    sampler = optuna.samplers.NSGAIIISampler(population_size=population_size, seed=seed, constraints_func=_broken)
    return OptunaAlgorithm(task, sampler, task.genes.diagonal(max(2, population_size // 2)))


def _tpe(task: Task, population_size: int, seed: int) -> Algorithm:
    # The batch is asked for as a whole, before any of it is told: a constant liar keeps its rows apart.
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, constraints_func=_broken)
    return OptunaAlgorithm(task, sampler, task.genes.diagonal(max(2, population_size // 2)))


def _random(task: Task, population_size: int, seed: int) -> Algorithm:
    return OptunaAlgorithm(task, optuna.samplers.RandomSampler(seed=seed), task.genes.diagonal(0))


def _exhaustive(task: Task, population_size: int, seed: int) -> Algorithm:
    return Exhaustive(task)


# Name -> what makes one of a task, the number of sizes per batch and a seed.
ALGORITHMS: dict[str, Callable[[Task, int, int], Algorithm]] = {
    "surrogate": _surrogate,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "tpe": _tpe,
    "random": _random,
    "exhaustive": _exhaustive,
}
