"""How the constants of our proxy were fitted, and how well a fit can do at all."""

from __future__ import annotations

import numpy as np
from proxies_tables import Table

from hf_elastic.search.proxies.capacity import LayerCapacity

FITTED_ON = "random_TransXL_lm1b"
FOLDS = 10


def features(table: Table) -> np.ndarray:
    """Logarithms of attention, of feed-forward and (mean over layers) of heads; one over the width, `[N, 4]`."""
    shapes = table.shapes
    kept = shapes.heads > 0
    heads = np.log(np.where(kept, shapes.heads, 1)).sum(1) / kept.sum(1)
    return np.column_stack([np.log(shapes.attention.sum(1)), np.log(shapes.ffn.sum(1)), heads, 1 / shapes.width])


def fit_constants(table: Table) -> tuple[float, float, float]:
    """Share of attention, exponent of the heads and narrowness, by two least squares on the logarithm of the perplexity.

    The first two among models of one width (a constant for each width), where embeddings are all alike; the last over all
    models, with `layer_capacity` as it is.
    """
    quality = -np.log(-table.quality)
    attention, ffn, heads, narrow = features(table).T
    widths = [table.shapes.width == width for width in np.unique(table.shapes.width)]
    slopes = np.linalg.lstsq(np.column_stack([attention, ffn, heads, *widths]).astype(float), quality, rcond=None)[0]
    columns = np.column_stack([np.log(LayerCapacity().compute(table.shapes)), narrow, np.ones(len(quality))])
    slope, bottleneck, _ = np.linalg.lstsq(columns, quality, rcond=None)[0]
    return slopes[0] / (slopes[0] + slopes[1]), slopes[2] / slopes[0], -bottleneck / slope


def fitted_within(table: Table, seed: int = 0) -> np.ndarray:
    """What a table's own least squares on the features and their products say of models that they were not fitted on, `[N]`.

    An estimate of what is attainable: what it orders wrongly is noise of training, or needs more than these features. The table
    is its own judge here, by tenths.
    """
    quality, columns = -np.log(-table.quality), features(table)
    columns = (columns - columns.mean(0)) / columns.std(0)
    products = [columns[:, i] * columns[:, j] for i in range(4) for j in range(i, 4)]
    columns = np.column_stack([np.ones(len(quality)), columns, *products])
    fold = np.random.default_rng(seed).permutation(len(quality)) % FOLDS
    predicted = np.zeros(len(quality))
    for held_out in range(FOLDS):
        test = fold == held_out
        predicted[test] = columns[test] @ np.linalg.lstsq(columns[~test], quality[~test], rcond=None)[0]
    return predicted
