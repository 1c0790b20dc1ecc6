"""How large attention and feed-forward are in every layer of many transformers at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ...core.counts import Counts
from ...core.errors import UserError
from ...core.layout import Entry, Layout
from ...core.modeling_elastic import ElasticPreTrainedModel
from ...core.shapes import axes_in
from ...core.spec import spec_for

PARTS = ATTENTION, FFN, OTHER = ("attention", "ffn", "other")
EMBEDDING_AXES = ("embed", "embed0")  # the width of the embeddings where it has a name of its own; of the widest ones


@dataclass(frozen=True)
class Shapes:
    """The layers of N transformers with at most L layers each; 0 where a model has no such layer.

    Attributes:
        attention: parameters of attention, biases included, `[N, L]`.
        ffn: parameters of the feed-forward, biases included, `[N, L]`.
        other: the layer's other parameters, its norms, `[N, L]`.
        heads: attention heads, `[N, L]`.
        final: parameters of the norm beside the list of layers, `[N]`.
        width: the smaller of the width of the embeddings and the hidden size: what a token can carry into the layers, `[N]`.
    """

    attention: np.ndarray
    ffn: np.ndarray
    other: np.ndarray
    heads: np.ndarray
    final: np.ndarray
    width: np.ndarray


def gpt2_shapes(d_model: np.ndarray, d_inner: np.ndarray, n_head: np.ndarray, d_embed: np.ndarray | None = None) -> Shapes:
    """Shapes of GPT-2s: `4d^2 + 4d` of attention, `2df + f + d` of feed-forward, two LayerNorms a layer and one at the end.

    Args:
        d_model: hidden size d, `[N]`.
        d_inner: feed-forward width f of each layer, 0 where there is none, `[N, L]`.
        n_head: attention heads of each layer, `[N, L]`.
        d_embed: width of the embeddings, `[N]`; None is d.
    """
    d = np.asarray(d_model, dtype=np.int64)[:, None]
    return _shapes(4 * d * d + 4 * d, 2 * d[:, 0], d, d_inner, n_head, d_embed)


def transfo_xl_shapes(d_model: np.ndarray, d_inner: np.ndarray, n_head: np.ndarray, d_embed: np.ndarray | None = None) -> Shapes:
    """Shapes of Transformer-XLs: `5d^2 + 2d` of attention (queries, keys, values, positions, output; two position biases),
    `2df + f + d` of feed-forward, two LayerNorms a layer. Arguments are those of `gpt2_shapes`."""
    d = np.asarray(d_model, dtype=np.int64)[:, None]
    return _shapes(5 * d * d + 2 * d, 0 * d[:, 0], d, d_inner, n_head, d_embed)


def _shapes(attention, final, d, d_inner, n_head, d_embed) -> Shapes:
    f = np.asarray(d_inner, dtype=np.int64)
    kept = f > 0
    width = d[:, 0] if d_embed is None else np.minimum(d[:, 0], d_embed)
    return Shapes(attention * kept, (2 * d * f + f + d) * kept, 4 * d * kept, np.asarray(n_head) * kept, final, width)


def counts_of(model: PreTrainedModel) -> Counts:
    """Closed-form counts of an elastic model or of a stock one.

    Raises:
        SpecError: there is no Spec for a stock model, or it does not fit.
    """
    if isinstance(model, ElasticPreTrainedModel):
        return model.counts
    return Counts(Layout(spec_for(model.config.model_type), model))


def parts_of(layout: Layout) -> dict[str, str]:
    """Which part of its layer each parameter within the layers is: name -> `ATTENTION`, `FFN` or `OTHER`.

    Matrices and vectors over heads are attention, those over feed-forward neurons feed-forward; the bias of a matrix is where
    its matrix is. All else is norms, and the ends of a bottleneck.
    """
    inside = {entry.name: entry for entry in layout.entries if entry.layer is not None}
    parts = {name: _part(entry, layout.spec.attention_axes) for name, entry in inside.items()}
    weights = {name: name.removesuffix("bias") + "weight" for name in inside if name.endswith(".bias")}
    return {name: parts.get(weights.get(name, name), part) if part == OTHER else part for name, part in parts.items()}


def _part(entry: Entry, attention: Collection[str]) -> str:
    axes = axes_in(entry.dims)
    return FFN if "ffn" in axes else ATTENTION if axes & attention else OTHER


def shapes_of(model: PreTrainedModel, subnets: Sequence[Mapping | str | None] = (None,)) -> Shapes:
    """Shapes of subnets of an elastic model, or of a stock model; nothing is built.

    Args:
        model: elastic, with any backbone; or stock, of an architecture that has a Spec.
        subnets: names, Subnets or None (the full model); a stock model has only None.

    Raises:
        ValueError: a subnet that the model does not have; any subnet of a stock model.
        SpecError: there is no Spec for a stock model, or it does not fit.
    """
    counts = counts_of(model)
    if isinstance(model, ElasticPreTrainedModel):
        subnets = [model.subnet(subnet) for subnet in subnets]
    elif any(subnet is not None for subnet in subnets):
        raise UserError(f"{type(model).__name__} is not elastic and has no subnets")
    return ShapeCounts(counts)(*counts.columns(subnets))


class ShapeCounts:
    """Shapes of populations of one model; what its layers consist of is read off once.

    Args:
        counts: of the model.
    """

    def __init__(self, counts: Counts):
        self._counts = counts
        parts, stack = parts_of(counts.layout), counts.layout.container.rpartition(".")[0]
        self._parts = {part: counts.collect(lambda entry, part=part: parts.get(entry.name) == part) for part in PARTS}
        self._final = counts.collect(lambda entry: _is_final_norm(entry, stack))

    def __call__(self, table: Mapping[str, np.ndarray], kept: np.ndarray) -> Shapes:
        """Shapes from axis sizes and kept layers, as `Counts.columns` gives them."""
        layout = self._counts.layout
        layers = {part: self._counts.per_layer(collected, table, kept) for part, collected in self._parts.items()}
        heads = np.ones_like(kept, dtype=np.int64)
        for axis in layout.spec.heads.split():
            column = table.get(axis, np.full((len(kept), 1), layout.full[axis]))
            heads = heads * (column[:, None] if column.ndim == 1 else column)
        final = self._counts.outside(self._final, table, kept)
        width = hidden = np.broadcast_to(table.get("hidden", layout.full["hidden"]), len(kept))
        for axis in EMBEDDING_AXES:
            width = np.minimum(width, table.get(axis, layout.full.get(axis, hidden)))
        return Shapes(layers[ATTENTION], layers[FFN], layers[OTHER], heads * kept, final, width)


def _is_final_norm(entry: Entry, stack: str) -> bool:
    """Whether a parameter belongs to a vector right beside the list of layers; norms of embeddings are with the embeddings."""
    owner = entry.name.rpartition(".")[0]
    return entry.layer is None and len(entry.dims) == 1 and owner.rpartition(".")[0] == stack and entry.tied_to is None
