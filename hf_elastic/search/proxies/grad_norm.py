"""Norms of the gradients."""

from .base import Proxy
from .subject import Batch, Subject


class GradNorm(Proxy):
    """`sum_W ||dL/dW||_2` over the matrices W. Source: Abdelfattah et al. 2021, "Zero-Cost Proxies for Lightweight NAS"."""

    needs = "labels"
    source = "Abdelfattah et al. 2021, arXiv 2101.08134"

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        return sum(float(gradient.norm()) for gradient in subject.gradients(batch)[1].values())
