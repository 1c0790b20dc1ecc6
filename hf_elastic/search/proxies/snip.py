"""Sensitivity of the loss to each weight."""

from .base import Proxy
from .subject import Batch, Subject


class Snip(Proxy):
    """`sum |w * dL/dw|`, what the loss would change without each weight.

    Source: Lee et al. 2019, "SNIP: Single-shot Network Pruning", summed as in Abdelfattah et al. 2021, "Zero-Cost Proxies".
    """

    needs = "labels"
    source = "Lee et al. 2019, arXiv 1810.02340"

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        return sum(subject.saliency(batch).values())
