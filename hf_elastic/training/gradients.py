"""Gradients of the sizes of a step: how far they disagree (cosines), PCGrad, and embeddings that add only their own rows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import torch

from ..core.skeleton import Skeleton

# One size's gradient: a tensor for each parameter, None where it has none.
Gradient = list["torch.Tensor | None"]


class SizeGradients:
    """Keeps the gradient of every size of a micro-batch apart; holds one copy of the gradients for each size.

    Args:
        parameters: those that are trained. What their `grad` holds, from earlier micro-batches, is set aside.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.roles: list[str] = []
        self.gradients: list[Gradient] = []
        self._before = self._take()

    def _take(self) -> Gradient:
        taken = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return taken

    def add(self, role: str) -> None:
        """Take the gradient that the backward of a size has just left."""
        self.roles.append(role)
        self.gradients.append(self._take())

    def cosines(self) -> dict[str, float]:
        """Cosine of each pair of sizes, over all trained weights: `{"cosine_largest_smallest": 0.7}`.

        A role that occurs more than once is numbered from the second on.
        """
        names = [
            role + (f"_{self.roles[:i].count(role) + 1}" if role in self.roles[:i] else "") for i, role in enumerate(self.roles)
        ]
        lengths = [_dot(gradient, gradient) ** 0.5 for gradient in self.gradients]
        return {
            f"cosine_{names[i]}_{names[j]}": float(_dot(self.gradients[i], self.gradients[j]) / (lengths[i] * lengths[j] + 1e-12))
            for i, j in itertools.combinations(range(len(names)), 2)
        }

    def finish(self, *, surgery: str, seed: str) -> None:
        """Put the sum of all gradients back into `grad`, after the surgery.

        Args:
            surgery: "none", or "pcgrad": from each size's gradient, take away its part along every other's that it conflicts
                with, in random order (Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", algorithm 1). An ablation.
            seed: of that order.
        """
        gradients = pcgrad(self.gradients, random.Random(seed)) if surgery == "pcgrad" else self.gradients
        for index, parameter in enumerate(self.parameters):
            parts = [gradient[index] for gradient in (self._before, *gradients) if gradient[index] is not None]
            # In place on a gradient of this step would change what others are compared with; there is none any more.
            parameter.grad = sum(parts[1:], parts[0]) if parts else None


def pcgrad(gradients: list[Gradient], generator: random.Random) -> list[Gradient]:
    """Each gradient without what it has against the others."""
    squares = [_dot(gradient, gradient) for gradient in gradients]
    result = []
    for i, own in enumerate(gradients):
        others = [j for j in range(len(gradients)) if j != i]
        generator.shuffle(others)
        for j in others:
            product = _dot(own, gradients[j])
            if product < 0 < squares[j]:
                own = _minus(own, product / squares[j], gradients[j])
        result.append(own)
    return result


def _dot(one: Gradient, other: Gradient) -> torch.Tensor:
    products = [(a.float() * b.float()).sum() for a, b in zip(one, other) if a is not None and b is not None]
    return torch.stack(products).sum() if products else torch.zeros(())


def _minus(one: Gradient, factor: torch.Tensor, other: Gradient) -> Gradient:
    """`one - factor * other`."""
    return [a if b is None else (-factor * b if a is None else a - factor * b) for a, b in zip(one, other)]


def add_rows_in_place(skeleton: Skeleton) -> None:
    """Let embeddings that are not cut add only the rows they looked up to a gradient that is there already.

    A dense gradient of MiniLM's embeddings is 47 MB, which every size of a step would fill with zeros and add otherwise. Autograd
    adds a sparse gradient to a dense one in place; the first size of a step makes the dense one.
    """
    for embedding, weight in skeleton.whole_embeddings:
        gradient = weight.grad
        embedding.sparse = gradient is not None and gradient.layout == torch.strided
