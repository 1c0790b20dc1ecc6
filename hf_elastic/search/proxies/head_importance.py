"""What a gate on each attention head would change."""

from collections.abc import Callable

import torch

from ...core.shapes import axes_in, evaluate
from .base import Proxy
from .shapes import ATTENTION
from .subject import Batch, Matrix, Subject


class HeadImportance(Proxy):
    """`sum_h mean_x |o_h(x) . dL(x)/do_h(x)|`, o_h what head h hands to the output projection for all tokens of a sequence x.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", eq. 2, summed over heads and layers.
    """

    needs = "labels"
    source = "Michel et al. 2019, arXiv 1905.10650"

    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        spec = subject.layout.spec
        outputs = [m for m in subject.matrices if m.part == ATTENTION and axes_in([m.inward]) & spec.attention_axes]
        contexts: dict[Matrix, torch.Tensor] = {}

        def keep(matrix: Matrix) -> Callable:
            def hook(_module, args):
                contexts[matrix] = args[0]

            return hook

        for matrix in outputs:
            subject.module.get_submodule(matrix.path).register_forward_pre_hook(keep(matrix))
        subject.free()
        with torch.enable_grad():
            loss = subject.module(**batch).loss
            gradients = torch.autograd.grad(loss, [contexts[matrix] for matrix in outputs])
        rows = batch["input_ids"].flatten(0, -2).shape[0]
        total = 0.0
        for matrix, gradient in zip(outputs, gradients):
            product = (contexts[matrix] * gradient).detach()
            heads = evaluate(spec.heads, subject.sizes(matrix.position))
            per_head = product.reshape(rows, -1, product.shape[-1]).unflatten(-1, (heads, -1))
            # The loss is a mean over sequences, so the mean is in its gradients already.
            total += float(per_head.sum((1, 3)).abs().sum())
        return total
