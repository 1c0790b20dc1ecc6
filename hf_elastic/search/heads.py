"""Fewer heads where some are alike: ELM's dynamic heads, for every model whose heads partition a width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch

from ..core.activations import Tokens, reads_and_writes, run_batches
from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.partition import partition_heads
from ..core.shapes import axes_in, parse
from ..core.space import HEADS, Subnet

THRESHOLD = 0.9


def merge_alike_heads(
    model: ElasticPreTrainedModel,
    subnet: str | Mapping | None,
    batches: Iterable[Mapping[str, torch.Tensor]],
    threshold: float = THRESHOLD,
) -> Subnet:
    """A size whose layers have no more heads than give different things: the same parameters, partitioned into wider heads.

    ELM (arXiv 2510.27037), its dynamic heads: in every layer a head whose context is alike to that of a head before it, which was
    kept, is redundant; heads become the largest divisor of the width that is not above the number of those that are kept.
    Contexts are what heads give to the output matrix of attention, and alike if their linear CKA (arXiv 1905.00414) is above the
    threshold. What the size computes changes; it is to be trained further.

    Args:
        model: the supernet.
        subnet: the size, such as the best of a search; its other axes stay.
        batches: model inputs; where there is an `attention_mask`, padding does not count.
        threshold: between 0 and 1.

    Returns:
        The size with all its axes named.

    Raises:
        UserError: heads of this model do not partition a width; a checkpoint that is frozen at one size; a threshold out of
            range, or no batch.
    """
    if not 0 < threshold < 1:
        raise UserError(f"threshold: {threshold} is not between 0 and 1")
    _check(model)
    batches = list(batches)
    if not batches:
        raise UserError("heads are compared on calibration batches; there are none")
    cut, layout = model.resolve(subnet), model.layout
    view, tokens, contexts, handles = model.view(subnet), Tokens(), {}, []
    for (layer, choice), path in _output_matrices(model).items():
        if layer in cut.layers and (choice is None or cut.sizes(cut.layers.index(layer))[choice]):
            position = cut.layers.index(layer)
            matrix = view.get_submodule(f"{layout.container}.{position}.{path}")
            contexts[position] = _Contexts()
            handles.append(matrix.register_forward_pre_hook(partial(contexts[position].add, tokens, path)))
    run_batches(view, batches, tokens, handles)
    heads = [cut.sizes(position)["heads"] for position in range(len(cut.layers))]
    for position, one in contexts.items():  # the others do not attend
        kept = count_different(one.similarities(heads[position]), threshold)
        heads[position] = max(number for number in range(1, kept + 1) if one.width % number == 0)
    return model.subnet({**model.subnet(subnet), HEADS: heads})


def _check(model: ElasticPreTrainedModel) -> None:
    if model.frozen_cut is not None:
        raise UserError("heads: this checkpoint is frozen at one size; take the supernet that it is from")
    layout = model.layout
    if axes_in(dim for entry in layout.entries for dim in entry.dims) & {"heads", "kv"}:
        partition_heads(layout.spec)  # says so where they cannot be
        raise UserError("heads: those of this model are dropped, not partitioned anew; convert it with head_partition")


def _output_matrices(model: ElasticPreTrainedModel) -> dict[tuple[int, str | None], str]:
    """(layer, choice or None) -> where in it the matrix is that reads all heads together, and writes something else."""
    layout, found = model.layout, {}
    for entry in layout.entries:
        path, _, key = entry.name.rpartition(".")
        if entry.layer is None or len(entry.dims) != 2 or key != "weight":
            continue
        read, written = reads_and_writes(entry, model.base.get_submodule(path))
        for choice, width in layout.attention[entry.layer]:
            if entry.choice in (None, choice) and (read,) == parse(f"({width})") != (written,):
                found[entry.layer, choice] = entry.rest.removesuffix(".weight")
    return found


class _Contexts:
    """Sums over tokens of what the heads of a layer give, all of them together."""

    def __init__(self):
        self.products = self.sums = torch.zeros(())
        self.count = 0

    @property
    def width(self) -> int:
        """All heads together."""
        return len(self.sums)

    def add(self, tokens: Tokens, name: str, _, args: tuple) -> None:
        """Take in what a matrix reads, `[batch, length, width]`, flattened or not."""
        for rows in tokens.of(args[0], name):
            rows = rows.double()
            self.products = rows.T @ rows + self.products
            self.sums = rows.sum(0) + self.sums
            self.count += len(rows)

    def similarities(self, heads: int) -> torch.Tensor:
        """Linear CKA between heads, `[heads, heads]`; 0 with one whose context is always the same."""
        means = self.sums / self.count
        covariances = (self.products - self.count * torch.outer(means, means)).unflatten(0, (heads, -1)).unflatten(2, (heads, -1))
        shared = covariances.square().sum((1, 3))
        own = shared.diagonal().sqrt()
        return (shared / torch.outer(own, own)).nan_to_num(0.0)


def count_different(similarities: torch.Tensor, threshold: float) -> int:
    """How many heads are kept if one that is alike to a kept one before it goes; similarities are `[heads, heads]`."""
    kept: list[int] = []
    for head, row in enumerate(similarities.tolist()):
        if all(row[other] <= threshold for other in kept):
            kept.append(head)
    return len(kept)
