"""Lets an algorithm choose, evaluates what it chose, and tells it what came out; alone or together with other processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.space import Space
from .algorithms.table import ALGORITHMS, Algorithm
from .candidate import Candidate
from .encoding import Encoding
from .evaluator import Evaluator
from .objectives import Objective
from .task import Task

DRAWS = 500  # random subnets looked at to find one that is new and allowed
PATIENCE = 10  # batches without anything new before the search ends early


def explore(
    evaluator: Evaluator,
    space: Space,
    objectives: Sequence[Objective],
    *,
    algorithm: str,
    n_trials: int,
    population_size: int,
    seed: int,
    on_each: Callable[[], object],
) -> None:
    """Evaluate subnets until `n_trials` are, or until no new one can be found that keeps the constraints.

    What is known already is not evaluated again, and told only when the algorithm asks for it: with one seed an interrupted
    search takes the same course again. What other processes found is told with the first batch that brings anything new.

    Args:
        evaluator: evaluates, and holds the results.
        space: where to search.
        objectives: what to optimise.
        algorithm: one of `ALGORITHMS`.
        n_trials: evaluated subnets to stop at, those of earlier runs and of other processes included.
        population_size: subnets per batch, whose latencies are measured side by side.
        seed: of the algorithm.
        on_each: called after each evaluated subnet.
    """
    encoding = Encoding(space.genes())
    is_known = any(name in evaluator.closed.names for name in evaluator.rules.wanted)

    def known(places: np.ndarray) -> dict[str, np.ndarray]:
        return evaluator.known(space, encoding, places) if is_known else {}

    def is_allowed(row: np.ndarray) -> bool:
        return not evaluator.rules.problems(evaluator.look_up(space.from_genes(encoding.chosen(row))))

    task = Task(encoding, objectives, evaluator.rules.constraints, known, is_allowed)
    course = _Course(evaluator, space, encoding, ALGORITHMS[algorithm](task, population_size, seed))
    generator = np.random.default_rng(seed)
    idle = 0
    extra: list[Candidate] = []
    while len(evaluator.study) < n_trials and idle < PATIENCE:
        asked = [*extra, *course.ask(population_size)]
        allowed = {id(c): c for c in asked if not c.is_evaluated and not evaluator.rules.problems(c)}
        mine = evaluator.evaluate(list(allowed.values())[: n_trials - len(evaluator.study)], on_each, n_trials)
        evaluator.refresh()
        course.tell(has_news=bool(mine))
        evaluator.take_over(n_trials, on_each)
        is_idle = not mine and not any(c.is_evaluated for c in allowed.values())
        idle, extra = (idle + 1, course.unseen(generator, population_size)) if is_idle else (0, [])


class _Course:
    """An algorithm that speaks of candidates, and is told of each once."""

    def __init__(self, evaluator: Evaluator, space: Space, encoding: Encoding, algorithm: Algorithm):
        self.evaluator = evaluator
        self.space = space
        self.encoding = encoding
        self.algorithm = algorithm
        self._waiting: list[tuple[np.ndarray, Candidate]] = []  # asked and not told yet
        self._seen: set[int] = set()  # candidates that were asked or told

    def ask(self, count: int) -> list[Candidate]:
        rows = self.algorithm.ask(count)
        candidates = [self._candidate(row) for row in rows]
        self._waiting += zip(rows, candidates)
        self._seen.update(map(id, candidates))
        return candidates

    def tell(self, has_news: bool) -> None:
        """Tell what was asked and is decided by now; with news, also what others have found."""
        waiting, self._waiting = self._waiting, []
        for row, candidate in waiting:
            if candidate.is_evaluated or self.evaluator.rules.problems(candidate):
                self._tell(row, candidate)
            else:
                self._waiting.append((row, candidate))
        for candidate in self.evaluator.evaluated if has_news else ():
            if id(candidate) not in self._seen:
                self._seen.add(id(candidate))
                layers = self.evaluator.model.resolve(candidate.subnet).layers
                row = self.encoding.row_of(candidate.subnet, layers)
                if row is not None:
                    self._tell(row, candidate)

    def _tell(self, row: np.ndarray, candidate: Candidate) -> None:
        self.algorithm.tell(row, candidate.values, float(sum(self.evaluator.rules.problems(candidate).values())))

    def unseen(self, generator: np.random.Generator, count: int) -> list[Candidate]:
        """Up to `count` random candidates that are neither evaluated nor refused."""
        found = {}
        for row in self.encoding.sample(generator, DRAWS):
            candidate = self.evaluator.preview(self.space.from_genes(self.encoding.chosen(row)))
            if not candidate.is_evaluated and not self.evaluator.rules.problems(candidate):
                found.setdefault(candidate.subnet, candidate)
            if len(found) == count:
                break
        return [self.evaluator.look_up(subnet) for subnet in found]

    def _candidate(self, row: np.ndarray) -> Candidate:
        return self.evaluator.look_up(self.space.from_genes(self.encoding.chosen(row)))
