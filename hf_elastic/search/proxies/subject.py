"""A model to score, and what proxies look at in it: the matrices of attention and of the feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...core.errors import UserError
from ...core.layout import Cut, Layout
from ...core.modeling_elastic import ElasticPreTrainedModel
from ...core.shapes import Dim
from ...core.skeleton import Skeleton
from ...core.spec import spec_for
from .shapes import ATTENTION, FFN, parts_of

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Matrix:
    """One matrix of attention or of the feed-forward.

    Attributes:
        path: of its module.
        part: `ATTENTION` or `FFN`.
        position: of its layer.
        inward: what it reads, a parsed dimension.
        outward: what it writes.
    """

    path: str
    part: str
    position: int
    inward: Dim
    outward: Dim


class Subject:
    """A model to score: a module tree of its own over the same tensors, so that scoring it disturbs nobody.

    Args:
        model: elastic; or stock, of an architecture that has a Spec: views and extracted models are stock, if their layers are
            alike.
        subnet: of an elastic model; None is the full model.

    Raises:
        ValueError: a subnet of a stock model, or one that the model does not have.
        SpecError: there is no Spec for a stock model, or it does not fit, as where layers of a view differ.
    """

    def __init__(self, model: PreTrainedModel, subnet: Mapping | str | None = None):
        if isinstance(model, ElasticPreTrainedModel):
            self.layout, self.cut = model.layout, model.resolve(subnet)
            stock = model.view(subnet)
        elif subnet is not None:
            raise UserError(f"{type(model).__name__} is not elastic and has no subnet {subnet}")
        else:
            self.layout = Layout(spec_for(model.config.model_type), model)
            self.cut, stock = self.layout.resolve(None), model
        self.module = Skeleton(stock, None, None, evaluating=True).prepare(None, differentiable=False)
        self.matrices = _find_matrices(self.layout, self.cut, self.module)

    def sizes(self, position: int) -> dict[str, int]:
        """Size of every axis in the layer at `position`."""
        return self.layout.sizes(self.cut, position)

    def free(self) -> dict[Matrix, torch.Tensor]:
        """Make every matrix a leaf that gets gradients; the model's own tensors stay as they are."""
        leaves = {}
        for matrix in self.matrices:
            owner = self.module.get_submodule(matrix.path)
            leaves[matrix] = owner._parameters["weight"] = owner.weight.detach().requires_grad_()
        return leaves

    def gradients(self, batch: Batch) -> tuple[dict[Matrix, torch.Tensor], dict[Matrix, torch.Tensor]]:
        """The matrices, and the gradients of the loss of a batch with labels."""
        leaves = self.free()
        with torch.enable_grad():
            loss = self.module(**batch).loss
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {key: leaf.detach() for key, leaf in leaves.items()}, dict(zip(leaves, gradients))

    def saliency(self, batch: Batch) -> dict[Matrix, float]:
        """`sum |w * dL/dw|` of every matrix."""
        weights, gradients = self.gradients(batch)
        return {key: float((weights[key] * gradients[key]).abs().sum()) for key in weights}


def _find_matrices(layout: Layout, cut: Cut, module: nn.Module) -> list[Matrix]:
    parts = parts_of(layout)
    found = []
    for name, (entry, _) in layout.plan(cut).items():
        if parts.get(entry.name) not in (ATTENTION, FFN) or len(entry.dims) != 2:
            continue
        path = name.removesuffix(".weight")
        inward, outward = entry.dims if isinstance(module.get_submodule(path), Conv1D) else reversed(entry.dims)
        found.append(Matrix(path, parts[entry.name], cut.layers.index(entry.layer), inward, outward))
    return found


def mask_of(batch: Batch) -> torch.Tensor:
    """Which tokens count, `[rows * tokens]`."""
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().flatten()


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch without its labels."""
    return {key: value for key, value in batch.items() if key != "labels"}
