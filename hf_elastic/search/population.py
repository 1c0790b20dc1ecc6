"""Whole populations at once: the axis sizes of rows of an `Encoding`, and every value that follows without an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import HEADS, Space
from ..measure.cost_model import CostModel, features_of, full_features
from ..measure.values import FLOPS, PARAMETERS
from .encoding import Encoding
from .proxies.shapes import ShapeCounts
from .proxies.table import CLOSED_FORMS, PROXIES

# Axis -> `[N]` for the whole model, `[N, L]` or `[N, 1]` within layers; and which layers are kept, `[N, L]`.
Population = tuple[dict[str, np.ndarray], np.ndarray]


def population(model: ElasticPreTrainedModel, space: Space, encoding: Encoding, places: np.ndarray) -> Population:
    """Axis sizes of rows of an `Encoding`, as `Counts.columns` has them of subnets.

    Args:
        model: the supernet.
        space: that the encoding is of.
        encoding: what the places mean.
        places: canonical rows `[N, G]`.
    """
    values = encoding.numbers(places)
    if "layers" in encoding.choices:  # any set of layers: no closed form for which layer a gene is about
        return model.counts.columns([space.from_genes(encoding.chosen(row)) for row in places])
    layout = model.layout
    depth = values.get("num_hidden_layers", np.full(len(places), layout.num_layers))
    kept = np.argsort(layout.layer_order)[None] < depth[:, None]
    # The gene of layer k is about the k-th kept layer.
    position = np.maximum(kept.cumsum(axis=1) - 1, 0)
    values = {axis: _by_layer(column, position) if column.ndim == 2 else column for axis, column in values.items()}
    if space.head_size:
        values[HEADS] = values["hidden_size"] // space.head_size
    return model.counts.population(values, len(places))


def _by_layer(column: np.ndarray, position: np.ndarray) -> np.ndarray:
    return np.take_along_axis(column, np.minimum(position, column.shape[1] - 1), axis=1)


class Known:
    """What is known of sizes without an evaluation: counts, closed-form proxies, and what cost models predict.

    Args:
        model: the supernet.
        predictors: cost models by the name of the value.
        batch_size: of the FLOPs.
        sequence_length: of the FLOPs.
    """

    def __init__(self, model: ElasticPreTrainedModel, predictors: Mapping[str, CostModel], batch_size: int, sequence_length: int):
        self._model = model
        self._predictors = predictors
        self._shape = (batch_size, sequence_length)
        self._full = full_features(model) if predictors else None
        self._shapes = ShapeCounts(model.counts)
        self.names = (PARAMETERS, FLOPS, *CLOSED_FORMS, *predictors)

    def __call__(self, sizes: Population, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the values that can be known, `[N]` by name."""
        counts, found = self._model.counts, {}
        if PARAMETERS in names:
            found[PARAMETERS] = counts.parameters(*sizes)
        if FLOPS in names:
            found[FLOPS] = counts.flops(*sizes, *self._shape)
        if wanted := [name for name in names if name in CLOSED_FORMS]:
            shapes = self._shapes(*sizes)
            found |= {name: PROXIES[name].compute(shapes) for name in wanted}
        if wanted := [name for name in names if name in self._predictors]:
            rows = features_of(self._model.layout, *sizes) / self._full
            found |= {name: rows @ self._predictors[name].weights for name in wanted}
        return found
