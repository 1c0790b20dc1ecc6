"""Our sampler: regress what is expensive, evolve on the predictions, and evaluate what should widen the frontier most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .frontier import non_dominated
from .regression import Regression
from .task import Task

START = 16  # rows evaluated before the first regression
POPULATION = 200  # rows of the inner evolution
GENERATIONS = 30
MUTATIONS = 1.5  # genes of a child that change, on average
DARTS = 16384  # points at which hypervolume is counted
STRANGERS = 0.1  # share of a batch that is random, lest a wrong regression never meets what would correct it


class Surrogate:
    """Ask for rows to evaluate, tell what came out.

    Each round: (1) every wanted value that has no closed form and no cost model is regressed on what has been told; (2) a population
    that starts from the present frontier is evolved by mutation and uniform crossover, ranked by the predictions (the
    evolution is LTS's, arXiv 2203.02094; that it runs on predictions is ours); (3) the batch is chosen from its frontier
    one row at a time, each time the row whose predicted costs add the most hypervolume to what is known and already chosen;
    (4) where nothing adds any, the row that differs most from all evaluated ones. (3) is the greedy batch of the literature on
    hypervolume improvement, with the mean prediction in place of an expectation over it.

    Args:
        task: what is searched, and for what.
        seed: of everything random.
    """

    def __init__(self, task: Task, seed: int):
        self.task = task
        self.generator = np.random.default_rng(seed)
        self._asked: set[bytes] = set()
        self._rows: list[np.ndarray] = []
        self._values: list[dict[str, float]] = []
        self._waiting = list(task.genes.diagonal(START // 2))

    def tell(self, row: np.ndarray, values: Mapping[str, float], problems: float) -> None:
        """See `Algorithm`; what is wrong with a row follows from its values, and one that lacks some is only not asked again."""
        self._asked.add(row.tobytes())
        if all(name in values for name in self.task.regressed):
            self._rows.append(row)
            self._values.append(dict(values))

    def ask(self, count: int) -> np.ndarray:
        """Up to `count` rows that were neither asked nor told before, `[<=count, G]`."""
        chosen = self._take(self._waiting, count)
        self._waiting = []
        if len(self._rows) < START:
            return self._fill(chosen, min(count, max(START - len(self._rows), len(chosen))))
        strangers = int(self.generator.random() < STRANGERS * count - int(STRANGERS * count)) + int(STRANGERS * count)
        if len(chosen) < count:
            chosen += self._take(self._best(count - len(chosen) - strangers), count - len(chosen))
        return self._fill(chosen, count)

    def _take(self, rows, count: int) -> list[np.ndarray]:
        found = []
        for row in rows:
            if len(found) < count and row.tobytes() not in self._asked:
                self._asked.add(row.tobytes())
                found.append(row)
        return found

    def _fill(self, chosen: list[np.ndarray], count: int) -> np.ndarray:
        for _ in range(20):
            if len(chosen) >= count:
                break
            chosen += self._take(self.task.genes.sample(self.generator, count), count - len(chosen))
        return np.array(chosen).reshape(len(chosen), len(self.task.genes))

    def _best(self, count: int) -> list[np.ndarray]:
        rows = np.array(self._rows)
        told = {name: np.array([values[name] for values in self._values]) for name in self.task.regressed}
        genes = self.task.genes
        fitted = {name: Regression(genes.coarse(rows), genes.fine(rows), values) for name, values in told.items()}

        def predict(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            inputs = genes.coarse(places), genes.fine(places)
            values = {**self.task.known(places), **{name: model.predict(*inputs) for name, model in fitted.items()}}
            return self.task.costs(values), self.task.violation(values)

        told |= self.task.known(rows)
        costs, violation = self.task.costs(told), self.task.violation(told)
        allowed = violation <= 0
        front = rows[allowed][non_dominated(costs[allowed])] if allowed.any() else rows[np.argsort(violation)[:START]]
        candidates = evolve(front, predict, self.task.genes, self.generator)
        candidates = candidates[[row.tobytes() not in self._asked for row in candidates]]
        if not len(candidates):
            return []
        predicted, broken = predict(candidates)
        return list(candidates[choose(predicted, broken, costs[allowed], count, self.generator)])


def evolve(front: np.ndarray, predict, genes, generator) -> np.ndarray:
    """Rows that are best by prediction, `[N, G]`.

    Args:
        front: rows to start from, `[F, G]`.
        predict: rows -> costs `[N, M]` and violations `[N]`.
        genes: of the rows.
        generator: draws.
    """
    population = np.unique(np.concatenate([front, genes.sample(generator, POPULATION)]), axis=0)
    costs, violation = predict(population)
    for _ in range(GENERATIONS):
        children = breed(population, genes, generator, POPULATION)
        both = np.unique(np.concatenate([population, children]), axis=0)
        costs, violation = predict(both)
        keep = survivors(costs, violation, POPULATION)
        population = both[keep]
    return population


def breed(parents: np.ndarray, genes, generator, count: int) -> np.ndarray:
    """Children of random pairs: uniform crossover for half of them, then mutation, `[count, G]`."""
    first, second = parents[generator.integers(len(parents), size=(2, count))]
    swap = (generator.random((count, len(genes))) < 0.5) & (generator.random((count, 1)) < 0.5)
    children = np.where(swap, second, first)
    drawn = generator.integers(0, genes.counts, size=children.shape)
    changed = generator.random(children.shape) < MUTATIONS / len(genes)
    return genes.canonical(np.where(changed, drawn, children))


def survivors(costs: np.ndarray, violation: np.ndarray, count: int) -> np.ndarray:
    """Places of up to `count` rows: rank by constrained domination, then by crowding (NSGA-II, Deb et al., IEEE TEC 6(2), 2002)."""
    remaining = np.flatnonzero(violation <= 0)
    kept: list[int] = []
    while len(remaining) and len(kept) < count:
        best = non_dominated(costs[remaining])
        front = remaining[best]
        if len(front) > count - len(kept):
            front = front[np.argsort(-crowding(costs[front]), kind="stable")[: count - len(kept)]]
        kept += front.tolist()
        remaining = remaining[~best]
    broken = np.flatnonzero(violation > 0)
    kept += broken[np.argsort(violation[broken], kind="stable")][: count - len(kept)].tolist()
    return np.array(kept)


def crowding(costs: np.ndarray) -> np.ndarray:
    """Sum over objectives of the relative distance between both neighbours, infinite at the ends, `[N]`."""
    total = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        gaps = np.diff(column[order]) / (np.ptp(column) or 1.0)
        total[order] += np.append(gaps, np.inf) + np.append(np.inf, gaps)
    return total


def choose(costs, violation, known, count: int, generator) -> list[int]:
    """Places of the rows whose costs add the most hypervolume, one after the other."""
    everything = np.concatenate([known, costs])
    low, high = everything.min(0), (known if len(known) > 1 else everything).max(0)
    span = np.where(high > low, high - low, 1.0)
    costs, known = (costs - low) / span, (known - low) / span
    darts = generator.random((DARTS, costs.shape[1])) * 1.05
    free = ~dominated(known, darts)
    hits = (costs[:, None, :] <= darts[None]).all(2) & (violation <= 0)[:, None]
    chosen: list[int] = []
    left = set(range(len(costs)))
    while len(chosen) < count and left:
        gains = (hits & free).sum(1)
        gains[chosen] = -1
        best = int(gains.argmax())
        if gains[best] <= 0:
            others = np.array(sorted(left))
            reached = np.concatenate([known, costs[chosen]])
            distance = np.abs(costs[others][:, None] - reached[None]).max(2).min(1) - violation[others].clip(0) * 1e3
            best = int(others[distance.argmax()])
        chosen.append(best)
        left.discard(best)
        free &= ~hits[best]
    return chosen


def dominated(points: np.ndarray, darts: np.ndarray) -> np.ndarray:
    covered = np.zeros(len(darts), dtype=bool)
    for point in points:
        covered |= (point <= darts).all(1)
    return covered
