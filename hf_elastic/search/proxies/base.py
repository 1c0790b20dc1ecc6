"""What a quality proxy is: a number that says which of two sizes will be better, without training either."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from .shapes import Shapes
from .subject import Batch, Subject


class Proxy(ABC):
    """A proxy that needs the weights; larger for the better model.

    Sums over weights are over the matrices of attention and of the feed-forward; embeddings and heads of tasks do not count.

    Attributes:
        needs: "weights" alone; "inputs", a batch too; or "labels", a batch with labels.
        source: the paper.
    """

    needs: str
    source: str

    @abstractmethod
    def compute(self, subject: Subject, batch: Batch | None) -> float:
        """The proxy of one size; the model that the subject was made of stays as it is."""


class ClosedForm(ABC):
    """A proxy that needs the shapes only, for many sizes at once; larger for the better model.

    Attributes:
        needs: "shapes".
        source: the paper, or "ours".
    """

    needs = "shapes"
    source = "ours"

    @abstractmethod
    def compute(self, shapes: Shapes) -> np.ndarray:
        """The proxy of N sizes, `[N]`."""
