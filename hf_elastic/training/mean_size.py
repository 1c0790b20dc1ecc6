"""How large the sizes of a space are on average, without drawing any."""

from __future__ import annotations

import itertools
from collections import defaultdict

from ..core.space import Space, Subnet


def weighted_sizes(space: Space) -> dict[Subnet, float]:
    """Few sizes of a space, and weights with which their parameters add up to the mean over random sizes.

    Layers add up and are drawn independently: the mean is that of sizes whose layers are alike, and for each layer what the mean
    over its choices differs from there.
    """
    genes = space.genes()
    shared = {gene: choices for gene, choices in genes.items() if "." not in gene}
    layered = {gene.partition(".")[0]: choices for gene, choices in genes.items() if "." in gene}
    of_layer, of_model = (list(itertools.product(*one.values())) for one in (layered, shared))
    weights: dict[Subnet, float] = defaultdict(float)
    for row in of_model:
        chosen = {**{gene: choices[0] for gene, choices in genes.items()}, **dict(zip(shared, row))}
        alike = space.from_genes(chosen)
        weights[alike] += 1 / len(of_model)
        depth = alike.get("num_hidden_layers") or len(alike.get("layers", ()))
        for layer in range(depth if layered else 0):
            weights[alike] -= 1 / len(of_model)
            for values in of_layer:
                own = {f"{axis}.{layer}": value for axis, value in zip(layered, values)}
                weights[space.from_genes({**chosen, **own})] += 1 / len(of_model) / len(of_layer)
    return dict(weights)
