"""Our sampler: regress what is expensive, evolve on the predictions, and evaluate what should widen the frontier most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ..encoding import Encoding
from ..pareto import non_dominated
from ..task import Task
from .base import Algorithm
from .regression import Regression

START = 16  # rows evaluated before the first regression
POPULATION = 200  # rows of the inner evolution
GENERATIONS = 30
MUTATIONS = 1.5  # genes of a child that change, on average
DARTS = 16384  # points at which hypervolume is counted
MARGIN = 0.05  # of the box beyond the worst known costs
OPTIMISM = 1.0  # standard deviations by which an objective is predicted better than its mean
DRAWS = 20  # attempts to find random rows that are new
STRANGERS = 0.1  # share of a batch that is random, lest a wrong regression never meets what would correct it


class Surrogate(Algorithm):
    """Ask for rows to evaluate, tell what came out.

    Each round: (1) every wanted value that has no closed form and no cost model is regressed on what has been told; (2) a
    population that starts from the present frontier is evolved by mutation and uniform crossover, ranked by the predictions (the
    evolution is LTS's, arXiv 2203.02094; that it runs on predictions is ours); (3) the batch is chosen from its frontier
    one row at a time, each time the row whose predicted costs add the most hypervolume to what is known and already chosen;
    (4) where nothing adds any, the row whose costs are farthest from all of those. Predictions are lower confidence bounds, one
    standard deviation better than the mean, and (3) is the greedy batch of SMS-EGO (Ponweiser et al., PPSN 2008); the features,
    the kernel and (4) are ours.
    """

    def __init__(self, task: Task, population_size: int, seed: int):
        self.task = task
        self.generator = np.random.default_rng(seed)
        self._asked: set[bytes] = set()
        self._rows: list[np.ndarray] = []
        self._values: list[dict[str, float]] = []
        self._waiting = list(task.encoding.diagonal(START // 2))
        self._fitted: dict[str, Regression] = {}

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """See `Algorithm`; what is wrong with a row follows from its values, and one that lacks some is only not asked again."""
        self._asked.add(row.tobytes())
        if all(name in values for name in self.task.regressed):
            self._rows.append(row)
            self._values.append(dict(values))

    def ask(self, count: int) -> np.ndarray:
        """See `Algorithm`; none was asked or told before."""
        chosen = self._take(self._waiting, count)
        self._waiting = []
        if len(self._rows) < START:
            return self._fill(chosen, min(count, max(START - len(self._rows), len(chosen))))
        whole, rest = divmod(STRANGERS * count, 1)
        strangers = int(whole) + int(self.generator.random() < rest)
        if len(chosen) < count:
            chosen += self._take(self._best(count - len(chosen) - strangers), count - len(chosen))
        return self._fill(chosen, count)

    def _take(self, rows: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
        """The first `count` rows that are new and allowed."""
        found = []
        for row in rows:
            if len(found) == count:
                break
            if row.tobytes() not in self._asked:
                self._asked.add(row.tobytes())
                found += [row] if self.task.is_allowed(row) else []
        return found

    def _fill(self, chosen: list[np.ndarray], count: int) -> np.ndarray:
        """Add random rows."""
        for _ in range(DRAWS):
            if len(chosen) >= count:
                break
            chosen += self._take(random_rows(self.task, self.generator, count), count - len(chosen))
        return np.array(chosen, dtype=int).reshape(len(chosen), len(self.task.encoding))

    def _best(self, count: int) -> list[np.ndarray]:
        """New rows that should add the most hypervolume, the first one first."""
        rows, task = np.array(self._rows), self.task
        values = {name: np.array([told[name] for told in self._values]) for name in task.regressed}
        inputs = task.encoding.coarse(rows), task.encoding.fine(rows)
        fitted = {name: Regression(*inputs, told, self._fitted.get(name)) for name, told in values.items()}
        self._fitted = fitted

        def predict(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            inputs = task.encoding.coarse(places), task.encoding.fine(places)
            predicted = {name: model.predict(*inputs, shift=-OPTIMISM * task.sign(name)) for name, model in fitted.items()}
            known = {**task.known(places), **predicted}
            return task.costs(known), task.violation(known, len(places))

        values |= task.known(rows)
        costs, violation = task.costs(values), task.violation(values, len(rows))
        kept = violation <= 0
        front = rows[kept][non_dominated(costs[kept])] if kept.any() else rows[np.argsort(violation)[:START]]
        candidates = evolve(front, predict, task.encoding, self.generator)
        candidates = candidates[[row.tobytes() not in self._asked for row in candidates]]
        if not len(candidates):
            return []
        predicted, broken = predict(candidates)
        return list(candidates[choose(predicted, broken, costs[kept], count, self.generator)])


def random_rows(task: Task, generator: np.random.Generator, count: int) -> np.ndarray:
    """Random rows that keep the constraints on what is known without an evaluation, as far as that can be had, `[count, G]`."""
    rows = task.encoding.sample(generator, count)
    if not task.is_limited:
        return rows

    def predict(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(places), 1)), task.violation(task.known(places), len(places))

    rows = np.concatenate([rows, task.encoding.sample(generator, POPULATION)])
    broken = predict(rows)[1]
    if broken.min() > 0:
        rows = evolve(rows, predict, task.encoding, generator)
        broken = predict(rows)[1]
    return rows[np.argsort(broken, kind="stable")][:count]


Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def evolve(front: np.ndarray, predict: Predict, encoding: Encoding, generator: np.random.Generator) -> np.ndarray:
    """Rows that are best by prediction, `[N, G]`.

    Args:
        front: rows to start from, `[F, G]`.
        predict: rows -> costs `[N, M]` and violations `[N]`.
        encoding: of the rows.
        generator: draws.
    """
    population = np.unique(np.concatenate([front, encoding.sample(generator, POPULATION)]), axis=0)
    costs, violation = predict(population)
    for _ in range(GENERATIONS):
        children = breed(population, encoding, generator, POPULATION)
        costs, violation = (np.concatenate(pair) for pair in zip((costs, violation), predict(children)))
        both, places = np.unique(np.concatenate([population, children]), axis=0, return_index=True)
        kept = survivors(costs[places], violation[places], POPULATION)
        population, costs, violation = both[kept], costs[places[kept]], violation[places[kept]]
    return population


def breed(parents: np.ndarray, encoding: Encoding, generator: np.random.Generator, count: int) -> np.ndarray:
    """Children of random pairs: uniform crossover for half of them, then mutation, `[count, G]`."""
    first, second = parents[generator.integers(len(parents), size=(2, count))]
    swap = (generator.random((count, len(encoding))) < 0.5) & (generator.random((count, 1)) < 0.5)
    children = np.where(swap, second, first)
    drawn = generator.integers(0, encoding.counts, size=children.shape)
    changed = generator.random(children.shape) < MUTATIONS / len(encoding)
    return encoding.canonical(np.where(changed, drawn, children))


def survivors(costs: np.ndarray, violation: np.ndarray, count: int) -> np.ndarray:
    """Places of up to `count` rows by constrained domination, then crowding (NSGA-II, Deb et al., IEEE TEC 6(2), 2002)."""
    remaining = np.flatnonzero(violation <= 0)
    # All pairs at once: `non_dominated` is for one frontier of many rows, and here every rank is wanted.
    reaches = no_worse(costs[remaining], costs[remaining])
    dominates = reaches & ~reaches.T
    kept: list[int] = []
    while len(remaining) and len(kept) < count:
        best = ~dominates.any(axis=0)
        front = remaining[best]
        if len(front) > count - len(kept):
            front = front[np.argsort(-crowding(costs[front]), kind="stable")[: count - len(kept)]]
        kept += front.tolist()
        remaining, dominates = remaining[~best], dominates[np.ix_(~best, ~best)]
    broken = np.flatnonzero(violation > 0)
    kept += broken[np.argsort(violation[broken], kind="stable")][: count - len(kept)].tolist()
    return np.array(kept)


def no_worse(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each of `left` `[L, M]` costs no more than each of `right` `[R, M]` in any objective, `[L, R]`."""
    # One objective at a time: numpy is slow in reducing an axis as short as that of the objectives.
    found = np.ones((len(left), len(right)), dtype=bool)
    for first, second in zip(left.T, right.T):
        found &= first[:, None] <= second
    return found


def crowding(costs: np.ndarray) -> np.ndarray:
    """Sum over objectives of the relative distance between both neighbours, infinite at the ends, `[N]`."""
    total = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        gaps = np.diff(column[order]) / (np.ptp(column) or 1.0)
        total[order] += np.append(gaps, np.inf) + np.append(np.inf, gaps)
    return total


def choose(costs: np.ndarray, violation: np.ndarray, known: np.ndarray, count: int, generator: np.random.Generator) -> list[int]:
    """Places of the rows whose costs add the most hypervolume, one after the other.

    The volume is counted by random points in the box that the known costs span, for any number of objectives. Where no row adds
    any, the one that is farthest from all that is known and chosen.

    Args:
        costs: of the rows to choose from, `[N, M]`.
        violation: of the same rows, `[N]`; a row that breaks a constraint adds nothing.
        known: costs of what is evaluated, `[K, M]`.
        count: how many to choose at most.
        generator: draws the points.
    """
    everything = np.concatenate([known, costs])
    low, high = everything.min(axis=0), (known if len(known) > 1 else everything).max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    costs, known = (costs - low) / span, (known - low) / span
    darts = generator.random((DARTS, costs.shape[1])) * (1 + MARGIN)
    free = ~no_worse(known[non_dominated(known)], darts).any(axis=0)
    hits = no_worse(costs, darts[free]) & (violation <= 0)[:, None]
    chosen: list[int] = []
    for _ in range(min(count, len(costs))):
        gains = hits.sum(axis=1)
        if gains.max() > 0:
            best = int(gains.argmax())
        else:
            reached = np.concatenate([known, costs[chosen]])
            distance = np.abs(costs[:, None] - reached[None]).max(axis=2).min(axis=1, initial=np.inf)
            distance[violation > 0] = -violation[violation > 0]
            distance[chosen] = -np.inf
            best = int(distance.argmax())
        chosen.append(best)
        hits &= ~hits[best]
    return chosen
