"""Zeroing as the twin of cutting, which the tests compare sizes with."""

from collections.abc import Mapping

import numpy as np
import torch

from hf_elastic.core.shapes import Dim, axes_in, chosen_indices, size


def keep_only(tensor: torch.Tensor, dims: tuple[Dim, ...], full: Mapping[str, int], kept: Mapping[str, int]) -> torch.Tensor:
    """A copy with everything outside the prefix `kept` of each axis set to zero: the full-sized twin of `cut`.

    A vector that is stored in rows is masked as the vector that it is.
    """
    mask = torch.ones_like(tensor if tensor.dim() == len(dims) else tensor.reshape(-1))
    for position, dim in enumerate(dims):
        changed = {axis: np.arange(kept[axis]) for axis in axes_in([dim]) & kept.keys()}
        outside = np.setdiff1d(np.arange(size(dim, full)), chosen_indices(dim, full, changed))
        mask.index_fill_(position, torch.from_numpy(outside).to(tensor.device), 0)
    return tensor * mask.view_as(tensor)
