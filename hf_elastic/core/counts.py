"""Parameters and FLOPs of subnets in closed form, for one subnet or for a whole population at once.

Every count is a polynomial in the axis sizes, read off the shape strings; nothing is built.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .choices import choice_axis
from .layout import Entry, Layout
from .shapes import evaluate
from .space import Subnet
from .spec import SKIP

# A polynomial: sorted axis names of each term -> its coefficient.
Polynomial = Mapping[tuple[str, ...], int]
# What some parameters are outside the layers, and in each layer.
Parts = tuple[Polynomial, Mapping[int, Polynomial]]


def volume(entry: Entry) -> Polynomial:
    """Number of elements of a parameter as a polynomial in its axes, among them that of the choice that has it."""
    terms: Counter = Counter({() if entry.choice is None else (entry.choice,): 1})
    for dim in entry.dims:
        product: Counter = Counter()
        for axes, coefficient in terms.items():
            for segment in dim:
                names = tuple(sorted((*axes, *(f for f in segment if isinstance(f, str)))))
                number = coefficient
                for factor in segment:
                    number *= factor if isinstance(factor, int) else 1
                product[names] += number
        terms = product
    return terms


def _total(widths: Collection[tuple[str | None, str]]) -> Polynomial:
    """The sum of widths, each of a choice or of all of them."""
    total: Counter = Counter()
    for choice, width in widths:
        total[tuple(sorted((*width.split(), *((choice,) if choice else ()))))] += 1
    return total


def _alike(inside: Mapping[int, Polynomial]) -> dict[tuple, list[int]]:
    """The layers of each different polynomial, given as its sorted items."""
    layers: dict[tuple, list[int]] = defaultdict(list)
    for layer, polynomial in inside.items():
        layers[tuple(sorted(polynomial.items()))].append(layer)
    return layers


class Counts:
    """Closed-form counts of one architecture.

    Args:
        layout: the model's layout.
        idle: names of parameters that do not run: adapters that are switched off.
    """

    def __init__(self, layout: Layout, idle: Collection[str] = ()):
        self.layout = layout
        self._axes = (*layout.model_axes, *layout.layer_axes)
        self._parameters = self.collect(lambda entry: entry.tied_to is None)
        self._per_token = self.collect(lambda entry: entry.use == "token" and entry.name not in idle)
        self._per_position = self.collect(lambda entry: entry.use == "position" and entry.name not in idle)
        self._per_sequence = self.collect(lambda entry: entry.use == "sequence" and entry.name not in idle)
        self._per_row = {
            axis: self.collect(lambda entry, axis=axis: entry.table == axis and entry.name not in idle)
            for axis in layout.spec.tables.values()
            if axis in layout.full
        }
        self._attended: Parts = ({}, {layer: _total(widths) for layer, widths in layout.attention.items()})

    def collect(self, wanted: Callable[[Entry], bool]) -> Parts:
        """Sum the volumes of the wanted entries: outside the layers, and for each layer."""
        outside: Counter = Counter()
        inside: dict[int, Counter] = defaultdict(Counter)
        for entry in self.layout.entries:
            if wanted(entry):
                (outside if entry.layer is None else inside[entry.layer]).update(volume(entry))
        return outside, inside

    def columns(self, subnets: Sequence[Mapping | None]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Axis sizes and kept layers of many subnets.

        Returns:
            axis -> `[N]` (whole model) or `[N, L]` (within layers, one column for each layer of the *full* model), and the
            boolean `[N, L]` of kept layers.
        """
        cuts = [self.layout.resolve(subnet) for subnet in subnets]
        kept = np.zeros((len(cuts), self.layout.num_layers), dtype=bool)
        shared = np.array([[value for _, value in cut.shared] for cut in cuts], dtype=np.int64)
        inner = np.zeros((len(cuts), self.layout.num_layers, len(self.layout.layer_axes)), dtype=np.int64)
        for row, cut in enumerate(cuts):
            layers = list(cut.layers)
            kept[row, layers] = True
            inner[row, layers] = [[value for _, value in sizes] for sizes in cut.per_layer]
        table = {axis: shared[:, i] for i, axis in enumerate(self.layout.model_axes)}
        table.update({axis: inner[:, :, i] for i, axis in enumerate(self.layout.layer_axes)})
        return self._with_followers(table), kept

    def _with_followers(self, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the axes that follow another one."""
        for axis, expression in self.layout.followers.items():
            table[axis] = evaluate(expression, {**self.layout.full, **table})
        return table

    def population(self, values: Mapping[str, np.ndarray], size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Like `columns`, from arrays that are already vectorised and trusted.

        Args:
            values: Hugging Face axis -> `[N]`, or `[N, L]` with one column for each layer of the full model, names for choices;
                `num_hidden_layers` -> `[N]`.
            size: N.
        """
        layout = self.layout
        depth = np.asarray(values.get("num_hidden_layers", np.full(size, layout.num_layers)))
        rank = np.argsort(layout.layer_order)
        kept = rank[None, :] < depth[:, None]
        table = {}
        for name, product in layout.axes.items():
            if name not in values or (name == "num_attention_heads" and "kv" in product.split()):
                continue
            column = np.asarray(values[name], dtype=np.int64)
            table[product] = column[:, None] if product in layout.layer_axes and column.ndim == 1 else column
        if "num_attention_heads" in values and "kv" in layout.full:
            heads = np.asarray(values["num_attention_heads"], dtype=np.int64)
            heads = heads[:, None] if heads.ndim == 1 else heads
            if "kv" not in table:
                table["kv"] = heads if layout.full["group"] == 1 else np.full_like(heads, layout.full["kv"])
            table["group"] = heads // table["kv"]
        for name, choices in layout.choices.items() if size else ():
            column = np.asarray(
                values.get(name, [[layout.choices.held[layer][name][0] for layer in range(layout.num_layers)]] * size)
            )
            column = column[:, None] if column.ndim == 1 else column
            table |= {choice_axis(name, choice): (column == choice).astype(np.int64) for choice in choices if choice != SKIP}
        for name in layout.grown if size else ():
            if name not in values:
                chosen = {key: np.broadcast_to(table[key], kept.shape) for key in layout.choices.axes}
                columns = [
                    np.broadcast_to(layout.grown_size(name, layer, {key: rows[:, layer] for key, rows in chosen.items()}), size)
                    for layer in range(layout.num_layers)
                ]
                table[layout.axes[name]] = np.stack(columns, axis=1)
        for axis in self._axes:
            shape = (size, 1) if axis in layout.layer_axes else (size,)
            table.setdefault(axis, np.full(shape, layout.full[axis], dtype=np.int64))
        return self._with_followers(table), kept

    def _evaluate(self, parts: Parts, table: Mapping, kept: np.ndarray) -> np.ndarray:
        """Value of a polynomial for each row, the layers summed over the kept ones."""
        outside, inside = parts
        total = self._polynomial(outside, table, layered=False) + np.zeros(len(kept), dtype=np.int64)
        for terms, layers in _alike(inside).items():
            value = self._polynomial(dict(terms), table, layered=True)
            mask = kept[:, layers]
            if np.ndim(value) == 2 and value.shape[1] > 1:
                total = total + (value[:, layers] * mask).sum(1)
            else:
                total = total + np.reshape(value, (-1,)) * mask.sum(1)
        return total

    def _polynomial(self, terms: Polynomial, table: Mapping, *, layered: bool) -> np.ndarray | int:
        total: np.ndarray | int = 0
        for axes, coefficient in terms.items():
            value: np.ndarray | int = coefficient
            for axis in axes:
                column = table.get(axis)
                if column is None:
                    value = value * self.layout.full[axis]
                else:
                    value = value * (column[:, None] if layered and column.ndim == 1 else column)
            total = total + value
        return total

    def per_layer(self, parts: Parts, table: Mapping, kept: np.ndarray) -> np.ndarray:
        """Number of elements of collected parameters in each layer of the full model, `[N, L]`; 0 where it is not kept."""
        result = np.zeros(kept.shape, dtype=np.int64)
        for terms, layers in _alike(parts[1]).items():
            value = np.broadcast_to(self._polynomial(dict(terms), table, layered=True), kept.shape)
            result[:, layers] = value[:, layers] * kept[:, layers]
        return result

    def outside(self, parts: Parts, table: Mapping, kept: np.ndarray) -> np.ndarray:
        """Number of elements of collected parameters outside the layers, `[N]`."""
        return self._polynomial(parts[0], table, layered=False) + np.zeros(len(kept), dtype=np.int64)

    def parameters(self, table: Mapping, kept: np.ndarray) -> np.ndarray:
        """Number of parameters of each row, tied tensors once."""
        return self._evaluate(self._parameters, table, kept)

    def flops(self, table: Mapping, kept: np.ndarray, batch_size: int, sequence_length: int) -> np.ndarray:
        """Floating-point operations of one forward pass: matrix products only, a multiply-add counting as two.

        Attention counts `QK^T` and its product with V over the full square, as the stock kernels compute it.
        """
        tokens = batch_size * sequence_length
        weights = 2 * tokens * self._evaluate(self._per_token, table, kept)
        weights = weights + 2 * sequence_length * self._evaluate(self._per_position, table, kept)
        pooled = 2 * batch_size * self._evaluate(self._per_sequence, table, kept)
        others = self.layout.spec.score_products * sequence_length  # whatever each token is multiplied by
        for axis, parts in self._per_row.items():
            weights = weights + 2 * self.layout.full[axis] * self._evaluate(parts, table, kept)
            others += self.layout.full[axis] * list(self.layout.spec.tables.values()).count(axis)
        return weights + pooled + 2 * tokens * others * self._evaluate(self._attended, table, kept)

    def parameters_of(self, subnets: Sequence[Subnet | None]) -> np.ndarray:
        """Parameters of each subnet, `[N]`."""
        return self.parameters(*self.columns(subnets))

    def flops_of(self, subnets: Sequence[Subnet | None], batch_size: int, sequence_length: int) -> np.ndarray:
        """FLOPs of each subnet, `[N]`."""
        return self.flops(*self.columns(subnets), batch_size, sequence_length)
