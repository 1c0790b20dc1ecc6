"""The independent choices of a space as arrays of integers, for algorithms that look at thousands of sizes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.spec import SKIP

DEPTH_GENES = ("num_hidden_layers", "layers")
HEADS = ("num_attention_heads", "num_key_value_heads")  # one gene if a space has both


class Encoding:
    """The choices of a space by gene; a gene of a layer is called AXIS.LAYER, as in `Space.genes`.

    A size is a row of places: for each gene, which of its choices. Genes of layers beyond the depth do nothing; `canonical`
    sets them to 0, so that equal sizes are equal rows, and keeps what `Space.from_genes` keeps.

    Args:
        choices: gene -> its choices in increasing order: integers, or tuples of integers; names in any order.

    Attributes:
        choices: as given.
        counts: number of choices of each gene, `[G]`.
    """

    def __init__(self, choices: Mapping[str, Sequence]):
        self.choices = {gene: tuple(options) for gene, options in choices.items()}
        self.counts = np.array([len(options) for options in self.choices.values()])
        names = list(self.choices)
        layers = [int(name.partition(".")[2]) if "." in name else -1 for name in names]
        depth = next((names.index(name) for name in DEPTH_GENES if name in names), None)
        self._whole = [place for place, layer in enumerate(layers) if layer < 0]
        self._axes: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if layers[place] >= 0:
                self._axes.setdefault(name.partition(".")[0], []).append(place)
        # For each choice of the depth, which genes are of layers that it keeps.
        depths = [len(layers)] if depth is None else [_depth(choice) for choice in self.choices[names[depth]]]
        self._kept = np.array([[layer < most for layer in layers] for most in depths])
        self._depth = depth
        options = {axis: (genes, self.choices[names[genes[0]]]) for axis, genes in self._axes.items()}
        self._skips = [(genes, names_of.index(SKIP)) for genes, names_of in options.values() if SKIP in names_of]
        self._numbers = [_numbers(options) for options in self.choices.values()]

    def __len__(self) -> int:
        return len(self.counts)

    def canonical(self, places: np.ndarray) -> np.ndarray:
        """Rows `[N, G]` with the genes of dropped layers at 0, and that of the first layer where all layers would skip."""
        kept = self.kept(places)
        places = places * kept
        for genes, place in self._skips:
            places[((places[:, genes] == place) | ~kept[:, genes]).all(axis=1), genes[0]] = 0
        return places

    def kept(self, places: np.ndarray) -> np.ndarray:
        """Which genes do something in each row, boolean `[N, G]`."""
        rows = np.zeros(len(places), dtype=int) if self._depth is None else places[:, self._depth]
        return self._kept[rows]

    def sample(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Random rows `[count, G]`, every gene uniform."""
        return self.canonical(generator.integers(0, self.counts, size=(count, len(self))))

    def diagonal(self, count: int) -> np.ndarray:
        """`count` rows from the largest to the smallest with all genes at the same height, `[count, G]`.

        Random genes are nearly all of middling size in a space of many layers; these span the range from the start.
        """
        heights = np.linspace(1, 0, count)[:, None]
        return self.canonical(np.round(heights * (self.counts - 1)).astype(int))

    def row(self, places: Mapping[str, int]) -> np.ndarray:
        """A canonical row `[G]` from places by name."""
        return self.canonical(np.array([[places[gene] for gene in self.choices]]))[0]

    def row_of(self, subnet: Mapping, layers: Sequence[int]) -> np.ndarray | None:
        """The canonical row `[G]` of a subnet; None if it is not in the space.

        Args:
            subnet: every axis, but the depth, by name: an int or a name, or one per kept layer.
            layers: the kept layers.
        """
        depths = {"num_hidden_layers": len(layers), "layers": tuple(layers)}
        row = np.zeros(len(self), dtype=int)
        for place, (gene, options) in enumerate(self.choices.items()):
            axis, _, layer = gene.partition(".")
            if layer and int(layer) >= len(layers):
                continue
            wanted = depths[axis] if axis in depths else _value(subnet, axis, layer, is_pair=isinstance(options[0], tuple))
            if wanted not in options:
                return None
            row[place] = options.index(wanted)
        return row

    def chosen(self, row: Sequence[int]) -> dict:
        """Gene -> choice, as `Space.from_genes` takes it."""
        return {gene: options[place] for (gene, options), place in zip(self.choices.items(), row)}

    def numbers(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """The chosen sizes or names by axis: `[N]` for the whole model, `[N, L]` by kept layer; not of genes that are sets of
        layers."""
        chosen: dict[str, list[np.ndarray]] = {}
        for place, (gene, options) in enumerate(self.choices.items()):
            axis = gene.partition(".")[0]
            if axis == "layers":
                continue
            names = HEADS if isinstance(options[0], tuple) else (axis,)
            for name, column in zip(names, np.array(options).reshape(len(options), -1).T):
                chosen.setdefault(name, []).append(column[places[:, place]])
        layered = {name for axis in self._axes for name in (HEADS if axis in HEADS else (axis,))}
        return {name: np.stack(columns, axis=1) if name in layered else columns[0] for name, columns in chosen.items()}

    def coarse(self, places: np.ndarray) -> np.ndarray:
        """The number behind each gene of the whole model, and for every axis of layers the mean over all layers, `[N, C]`.

        Each is in 0..1; a layer that is dropped counts as 0.
        """
        columns = self._columns(places)
        means = [sum(columns[gene] for gene in genes) / len(genes) for genes in self._axes.values()]
        return np.concatenate([np.zeros((len(places), 0)), *(columns[gene] for gene in self._whole), *means], axis=1)

    def fine(self, places: np.ndarray) -> np.ndarray:
        """The number behind each gene of a layer, in 0..1 and 0 where the layer is dropped, `[N, F]`."""
        columns = self._columns(places)
        layered = [columns[gene] for genes in self._axes.values() for gene in genes]
        return np.concatenate([np.zeros((len(places), 0)), *layered], axis=1)

    def _columns(self, places: np.ndarray) -> list[np.ndarray]:
        kept = self.kept(places)
        return [np.where(kept[:, [gene]], numbers[places[:, gene]], 0.0) for gene, numbers in enumerate(self._numbers)]


def _value(subnet: Mapping, axis: str, layer: str, is_pair: bool) -> int | str | tuple[int, ...]:
    values = [subnet[name] for name in (HEADS if is_pair else (axis,))]
    values = [value[int(layer or 0)] if isinstance(value, tuple) else value for value in values]
    return tuple(values) if is_pair else values[0]


def _depth(choice: int | tuple[int, ...]) -> int:
    return len(choice) if isinstance(choice, tuple) else choice


def _numbers(options: Sequence) -> np.ndarray:
    """The choices of a gene as rows of numbers in 0..1; of lists of different lengths, the length; of names, one column each."""
    if isinstance(options[0], str):
        return np.eye(len(options))
    lists = [option if isinstance(option, tuple) else (option,) for option in options]
    if len({len(one) for one in lists}) > 1:
        lists = [(len(one),) for one in lists]
    rows = np.array(lists, dtype=float)
    return rows / np.maximum(rows.max(axis=0), 1)
