"""Training-free transformer architecture search: saliency of the feed-forward, diversity of attention.

Source: Zhou et al. 2022, "Training-free Transformer Architecture Search" (TF-TAS), for vision transformers;
Serianni and Kalita 2023 (arXiv 2306.00288) for language models.
"""

import torch

from .base import Proxy
from .shapes import ATTENTION, FFN
from .subject import Batch, Subject

SOURCE = "Zhou et al. 2022, arXiv 2203.12217"


class SynapticSaliency(Proxy):
    """`sum |w * dL/dw|` over the feed-forward only."""

    needs = "labels"
    source = SOURCE

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        return sum(value for key, value in subject.saliency(batch).items() if key.part == FFN)


class SynapticDiversity(Proxy):
    """`sum_W ||W||_nuc * ||dL/dW||_nuc` over the matrices of attention."""

    needs = "labels"
    source = SOURCE

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        weights, gradients = subject.gradients(batch)
        norm = torch.linalg.matrix_norm
        keys = [key for key in weights if key.part == ATTENTION]
        return sum(float(norm(weights[key], "nuc") * norm(gradients[key], "nuc")) for key in keys)
