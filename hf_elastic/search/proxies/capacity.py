"""What the layers can do: closed forms of ours that multiply attention and feed-forward."""

import numpy as np

from .base import ClosedForm
from .shapes import Shapes

# Each fitted on one table only; recipes/benchmarks/proxies.py prints the fit.
ATTENTION_SHARE = 2 / 5
HEADS_EXPONENT = 1 / 5
NARROWNESS = 109


class AttentionTimesFFN(ClosedForm):
    """`A * F`: parameters of all attention times parameters of all feed-forward; ours, without a constant."""

    def compute(self, shapes: Shapes) -> np.ndarray:
        """See `ClosedForm`."""
        return shapes.attention.sum(1).astype(float) * shapes.ffn.sum(1)


class LayerCapacity(ClosedForm):
    """`(sum_l a_l h_l^(1/5))^(2/5) * (sum_l f_l)^(3/5)`; ours.

    a_l and f_l are the parameters of attention and of the feed-forward in layer l, h_l its heads. Decoder parameters add what
    this multiplies: to them a model may be all feed-forward. Constants: docs/search.md.
    """

    def compute(self, shapes: Shapes) -> np.ndarray:
        """See `ClosedForm`."""
        heads = np.where(shapes.heads > 0, shapes.heads, 1).astype(float)
        attention = (shapes.attention * heads**HEADS_EXPONENT).sum(1)
        return attention**ATTENTION_SHARE * shapes.ffn.sum(1).astype(float) ** (1 - ATTENTION_SHARE)


class Capacity(LayerCapacity):
    """`LayerCapacity * exp(-109 / w)`; ours.

    w is the smaller of the width of the embeddings and the hidden size: however much the layers can do, a token brings no more
    into them. Among models of one width it ranks as `LayerCapacity` does. Constants: docs/search.md.
    """

    def compute(self, shapes: Shapes) -> np.ndarray:
        """See `ClosedForm`."""
        return super().compute(shapes) * np.exp(-NARROWNESS / shapes.width)
