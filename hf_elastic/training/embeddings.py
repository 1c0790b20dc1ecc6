"""Gradients of embeddings that several sizes of a step share."""

from __future__ import annotations

import torch

from ..skeleton import Skeleton


def add_rows_in_place(skeleton: Skeleton) -> None:
    """Let embeddings that are not cut add only the rows they looked up to a gradient that is there already.

    A dense gradient of MiniLM's embeddings is 47 MB, which every size of a step would fill with zeros and add otherwise. Autograd
    adds a sparse gradient to a dense one in place; the first size of a step makes the dense one.
    """
    for embedding, weight in skeleton.whole_embeddings:
        gradient = weight.grad
        embedding.sparse = gradient is not None and gradient.layout == torch.strided
