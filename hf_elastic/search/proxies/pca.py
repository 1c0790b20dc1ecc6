"""Principal components inside the feed-forward. Source: Wang 2025, "W-PCA Based Gradient-Free Proxy" (arXiv 2504.15983)."""

from collections.abc import Callable, Iterable

import torch

from .base import Proxy
from .shapes import FFN
from .subject import Batch, Matrix, Subject, inputs_of, mask_of

# Share of the variance that the counted principal components hold.
VARIANCE = 0.99


class VPCA(Proxy):
    """`sum_l k_l`, k_l the principal components that hold 99% of the variance of the feed-forward's pre-activation over the
    unmasked tokens; of a gated one, of its gate.

    The paper calls it vanilla PCA.
    """

    needs = "inputs"
    source = "Wang 2025, arXiv 2504.15983"

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        seen: dict[int, torch.Tensor] = {}

        def keep(matrix: Matrix) -> Callable:
            def hook(_module, _args, output):
                width = subject.sizes(matrix.position)["ffn"]
                seen[matrix.position] = output[..., :width].reshape(-1, width)

            return hook

        for matrix in _first_of_each_layer(m for m in subject.matrices if m.part == FFN and m.inward == (("hidden",),)):
            subject.module.get_submodule(matrix.path).register_forward_hook(keep(matrix))
        with torch.no_grad():
            subject.module(**inputs_of(batch))
        mask = mask_of(batch)
        return float(sum(principal_components(values[mask]) for values in seen.values()))


class WPCA(VPCA):
    """`VPCA` times the number of parameters, those of embeddings included."""

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        parameters = sum(parameter.numel() for parameter in subject.module.parameters())
        return parameters * super().compute(subject, batch)


def principal_components(values: torch.Tensor, share: float = VARIANCE) -> int:
    """How many principal components of `[samples, width]` hold `share` of the variance; 0 where nothing varies."""
    centred = values.double() - values.double().mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp(min=0)
    total = variances.sum()
    return int((variances.cumsum(0) < share * total).sum()) + 1 if total > 0 else 0


def _first_of_each_layer(matrices: Iterable[Matrix]) -> list[Matrix]:
    """The gate comes first in every gated feed-forward, and is the first half of a fused one."""
    first: dict[int, Matrix] = {}
    for matrix in matrices:
        first.setdefault(matrix.position, matrix)
    return list(first.values())
