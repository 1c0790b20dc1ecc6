"""A search with recorded answers: HW-GPT-Bench's tables, and one frozen regression of each of their columns."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor

from hf_elastic.search.encoding import Encoding

PERPLEXITY = "perplexity"
LATENCIES = ("a100_ms", "h100_ms", "v100_ms", "a6000_ms", "rtx3080_ms", "cpu_helix_ms", "cpu_meta_ms")
TABLES = ("gpt_s", "gpt_m", "gpt_l")
HELD_OUT = 0.2
# Gene of the whole model -> column; gene of a layer -> column with one number per layer.
WHOLE = {"num_hidden_layers": "n_layer", "embed_dim": "embed_dim", "bias": "bias"}
LAYERED = {"n_head": "n_head", "mlp_ratio": "mlp_ratio"}


@dataclass(frozen=True)
class HeldOut:
    """How well a column is predicted on rows that the regression has not seen.

    Attributes:
        error: mean absolute error relative to the recorded value.
        rank_correlation: Spearman's.
    """

    error: float
    rank_correlation: float


class Answers:
    """What a size costs, for any size of the space that a table is a sample of.

    The regressions are gradient-boosted trees on the logarithm, fitted on four fifths of the rows and scored on the rest; they
    stay as they are, and every algorithm searches the same.

    Args:
        data_dir: folder with nas/hwgpt_bench.
        name: of the table.

    Attributes:
        encoding: of the space.
        rows: how many the table has.
        held_out: by column.

    Raises:
        FileNotFoundError: the table is missing.
    """

    def __init__(self, data_dir: Path, name: str):
        recorded = _read(data_dir / "nas" / "hwgpt_bench" / f"{name}.csv.gz")
        self.encoding = Encoding(_choices(recorded))
        places = _places(recorded, self.encoding)
        columns = {column: np.log([float(row[column]) for row in recorded]) for column in (PERPLEXITY, *LATENCIES)}
        self.rows = len(recorded)
        self._places = places
        order = np.random.default_rng(0).permutation(self.rows)
        test, train = np.split(order, [int(HELD_OUT * self.rows)])
        features = self._features(places)
        self._models, self.held_out = {}, {}
        for column, values in columns.items():
            model = HistGradientBoostingRegressor(learning_rate=0.06, max_iter=400, max_leaf_nodes=15, random_state=0)
            self._models[column] = model.fit(features[train], values[train])
            predicted = model.predict(features[test])
            error = float(np.abs(np.exp(predicted - values[test]) - 1).mean())
            self.held_out[column] = HeldOut(error, float(spearmanr(predicted, values[test])[0]))

    def costs(self, places: np.ndarray, latency: str) -> np.ndarray:
        """Perplexity and one latency in ms of rows of places, `[N, 2]`."""
        features = self._features(places)
        return np.exp(np.stack([self._models[column].predict(features) for column in (PERPLEXITY, latency)], axis=1))

    def worst(self, latency: str) -> np.ndarray:
        """The largest perplexity and latency of the table's rows and of the largest and the smallest size, `[2]`."""
        return self.costs(np.concatenate([self._places, self.encoding.diagonal(2)]), latency).max(axis=0)

    def _features(self, places: np.ndarray) -> np.ndarray:
        """The numbers of every gene, 0 in layers that are not there; sums over layers; products that parameters are made of."""
        kept = self.encoding.kept(places)
        numbers = [np.array(options)[places[:, gene]] for gene, options in enumerate(self.encoding.choices.values())]
        numbers = np.stack(numbers, axis=1) * kept
        width = numbers[:, list(self.encoding.choices).index("embed_dim")]
        sums = [numbers[:, [gene.startswith(axis) for gene in self.encoding.choices]].sum(axis=1) for axis in LAYERED]
        products = [width * total for total in sums] + [width * width * sums[1]]
        return np.column_stack([numbers, *sums, *products])


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; --data-dir is the folder that has nas/hwgpt_bench")
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def _choices(rows: Sequence[dict[str, str]]) -> dict[str, list[int]]:
    """Gene -> the values that occur in the table."""
    found = {column: sorted({int(number) for row in rows for number in row[column].split()}) for column in WHOLE.values()}
    layers = range(found["n_layer"][-1])
    choices = {gene: found[column] for gene, column in WHOLE.items()}
    for axis, column in LAYERED.items():
        values = sorted({int(number) for row in rows for number in row[column].split()})
        choices.update({f"{axis}.{layer}": values for layer in layers})
    return choices


def _places(rows: Sequence[dict[str, str]], encoding: Encoding) -> np.ndarray:
    """The table's sizes as rows of places, `[N, G]`."""
    places = np.zeros((len(rows), len(encoding)), dtype=int)
    columns = {gene: place for place, gene in enumerate(encoding.choices)}
    for place, row in enumerate(rows):
        chosen = {gene: int(row[column]) for gene, column in WHOLE.items()}
        for axis, column in LAYERED.items():
            chosen.update({f"{axis}.{layer}": int(number) for layer, number in enumerate(row[column].split())})
        for gene, value in chosen.items():
            places[place, columns[gene]] = encoding.choices[gene].index(value)
    return encoding.canonical(places)
