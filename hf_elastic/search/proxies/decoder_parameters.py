"""Parameters of the layers."""

import numpy as np

from .base import ClosedForm
from .shapes import Shapes


class DecoderParameters(ClosedForm):
    """Parameters of attention, feed-forward and norms; no embedding, no softmax."""

    source = 'Javaheripi et al. 2022, "LiteTransformerSearch", arXiv 2203.02094'

    def compute(self, shapes: Shapes) -> np.ndarray:
        """See `ClosedForm`."""
        return (shapes.attention + shapes.ffn + shapes.other).sum(1) + shapes.final
