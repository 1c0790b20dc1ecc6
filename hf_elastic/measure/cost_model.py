"""Latency and memory of any size, predicted from a few dozen measured ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr
from sklearn.model_selection import KFold

from ..core.errors import UserError
from ..core.layout import Layout
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Subnet
from .digests import architecture_digest
from .profile import DeviceProfile
from .values import LATENCY, MEMORY

FEWEST = 8  # measured sizes from which on folds are worth fitting
FOLDS = 5


def features(model: ElasticPreTrainedModel, subnets: Sequence[Subnet]) -> np.ndarray:
    """What a cost is a sum of, from the shapes alone: no size is built.

    One column for the call itself, one for the number of kept layers, and for each axis that is cut: its sum over the kept
    layers (activations), and its products with every other such axis (matrix products). Whatever the backbone calls them.

    Returns:
        `[N, F]`, each column divided by its value for the full model.
    """
    return features_of(model.layout, *model.counts.columns(subnets)) / full_features(model)


def full_features(model: ElasticPreTrainedModel) -> np.ndarray:
    """The columns of the full model, `[1, F]`; 1 where it has none, such as layers of a choice that it does not run."""
    columns = features_of(model.layout, *model.counts.columns([None]))
    return np.where(columns > 0, columns, 1.0)


def features_of(layout: Layout, table: Mapping[str, np.ndarray], kept: np.ndarray) -> np.ndarray:
    """The columns of `features` before they are divided, from axis sizes and kept layers as `Counts.columns` gives them."""
    depth = kept.sum(1)
    within = {axis: (table[axis] * kept).sum(1) for axis in layout.layer_axes}
    across = {axis: table[axis] for axis in layout.model_axes}
    columns = [np.ones(len(kept)), depth, *within.values(), *across.values()]
    columns += [depth * column for column in across.values()]
    columns += [inner * outer for inner, outer in itertools.product(within.values(), across.values())]
    pairs = [pair for pair in itertools.combinations(within, 2) if not layout.choices.exclude(*pair)]
    columns += [(table[one] * table[two] * kept).sum(1) for one, two in pairs]
    # Attention whose width follows the hidden size has matrices of one by the other; within no layer axis is in them.
    widths = sorted({pair for pairs in layout.attention.values() for pair in pairs}, key=str)
    attends = [(depth if choice is None else within[choice], table[axis]) for choice, axis in widths if axis in layout.followers]
    columns += [count * width * table[other] for count, width in attends for other in across]
    return np.stack(columns, axis=1).astype(float)


@dataclass(frozen=True)
class CostModel:
    """A cost as a sum of parts, none negative, since no part of a model gives time or memory back.

    Attributes:
        weights: `[F]`, in the unit of the cost.
        error: mean absolute percentage error on held-out sizes.
        rank_correlation: Spearman's, predicted against measured, on held-out sizes.
        count: sizes it was fitted on.
    """

    weights: np.ndarray
    error: float
    rank_correlation: float
    count: int

    @classmethod
    def fit(cls, model: ElasticPreTrainedModel, subnets: Sequence[Subnet], costs: Sequence[float], seed: int = 0) -> CostModel:
        """Fit non-negative least squares of the relative error, and score it by cross-validation in 5 folds.

        Args:
            model: the supernet.
            subnets: measured sizes, each once.
            costs: their costs, above 0, in any unit.
            seed: of the folds.

        Raises:
            ValueError: fewer than 8 sizes.
        """
        if len(subnets) < FEWEST:
            raise UserError(f"a cost model needs at least {FEWEST} measured sizes, got {len(subnets)}")
        rows, costs = features(model, subnets), np.asarray(costs, dtype=float)
        held_out = np.empty_like(costs)
        for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(rows):
            held_out[test] = rows[test] @ _solve(rows[train], costs[train])
        error = float(np.mean(np.abs(held_out / costs - 1)))
        return cls(_solve(rows, costs), error, float(spearmanr(held_out, costs).statistic), len(costs))

    def predict(self, model: ElasticPreTrainedModel, subnets: Sequence[Subnet]) -> np.ndarray:
        """Costs `[N]` of sizes, in the unit of the measured ones."""
        return features(model, subnets) @ self.weights

    def __str__(self) -> str:
        return f"{100 * self.error:.1f}% mean error, rank correlation {self.rank_correlation:.3f}, {self.count} sizes"


def cost_models(model: ElasticPreTrainedModel, profile: DeviceProfile) -> dict[str, CostModel]:
    """The cost models that a profile allows, by the name of the value: latency, and peak memory where it was measured.

    Raises:
        ValueError: the profile is of another model, or has fewer than 8 sizes.
    """
    profile.check_model(architecture_digest(model))
    subnets = [one.subnet for one in profile.measured]
    fitted = {LATENCY: CostModel.fit(model, subnets, [one.latency.median_ms for one in profile.measured])}
    if all(one.memory is not None for one in profile.measured):
        fitted[MEMORY] = CostModel.fit(model, subnets, [one.memory.peak_mb for one in profile.measured])
    return fitted


def _solve(rows: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Weights that minimise the squared relative error: a tenth too slow is as bad for a small size as for a large one."""
    return nnls(rows / costs[:, None], np.ones(len(costs)))[0]
