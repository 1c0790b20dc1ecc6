"""Indexes of FAISS: flat, HNSW and IVF-PQ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow

from ...core.errors import MissingPackageError, UserError
from .base import Store
from .config import IndexConfig

try:
    import faiss
except ImportError as error:
    raise MissingPackageError("faiss is not installed: run pip install 'hf-elastic[retrieval]'") from error

VECTORS, IDS = "index.faiss", "ids.arrow"
PQ_BITS = 8
FEWEST, MOST = (
    39,
    256,
)  # rows for each centre that FAISS trains: below the first it warns, of more than the second it takes a part


class FaissStore(Store):
    """A FAISS index, and the id of each of its rows.

    FAISS cannot remove rows from a graph, so a deleted one is marked and never found; it goes when the index is made again.
    """

    def __init__(self, config: IndexConfig, dimension: int, index: faiss.Index, rows: pyarrow.Table, *, read_only: bool = False):
        super().__init__(config, dimension)
        self._index, self._chunks, self.is_read_only = index, rows["id"].chunks, read_only
        self._deleted = rows["deleted"].to_numpy().copy()
        self._rows: dict[str, int] | None = None

    @classmethod
    def create(cls, config: IndexConfig, dimension: int, identity: str, *, resume: bool) -> FaissStore:
        """One without documents."""
        metric = faiss.METRIC_L2 if config.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
        if config.kind == "flat":
            index = faiss.IndexFlat(dimension, metric)
        elif config.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dimension, config.hnsw_m, metric)
            index.hnsw.efConstruction = config.ef_construction
        else:
            parts = config.pq_m or max(1, dimension // 8)
            if dimension % parts:
                raise UserError(f"pq_m: {parts} does not divide the dimension of the vectors, {dimension}")
            index = faiss.IndexIVFPQ(faiss.IndexFlat(dimension, metric), dimension, config.nlist, parts, PQ_BITS, metric)
        return cls(config, dimension, index, _rows([], []))

    @classmethod
    def load(cls, folder: Path, config: IndexConfig, dimension: int, place: str | None, *, mmap: bool) -> FaissStore:
        """One that was saved."""
        with pyarrow.memory_map(str(folder / IDS)) as file:
            rows = pyarrow.ipc.open_file(file).read_all()
        index = faiss.read_index(str(folder / VECTORS), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        return cls(config, dimension, index, rows, read_only=mmap)

    @property
    def count(self) -> int:
        """How many documents it has."""
        return len(self._deleted) - int(self._deleted.sum())

    @property
    def rows(self) -> dict[str, int]:
        """The row of each id; made when it is first needed, which a search does not."""
        if self._rows is None:
            live = np.flatnonzero(~self._deleted)
            self._rows = dict(zip(self._ids().take(pyarrow.array(live)).to_pylist(), live.tolist()))
        return self._rows

    def _ids(self) -> pyarrow.Array:
        if len(self._chunks) != 1:
            self._chunks = [pyarrow.concat_arrays([pyarrow.array([], pyarrow.large_string()), *self._chunks])]
        return self._chunks[0]

    @property
    def training_rows(self) -> int:
        """As many as FAISS uses, until it is trained."""
        return 0 if self._index.is_trained else MOST * max(self.config.nlist, 2**PQ_BITS)

    def existing(self, ids: Sequence[str]) -> list[str]:
        """Those of some ids that are in it."""
        return [one for one in ids if one in self.rows]

    def check_count(self, count: int) -> None:
        """Raise UserError if so many are too few to train on."""
        needed = FEWEST * max(self.config.nlist, 2**PQ_BITS)
        if self.config.kind == "ivfpq" and count < needed:
            raise UserError(
                f"ivfpq: {count:,} documents are too few to train on; nlist {self.config.nlist:,} needs {needed:,}, "
                f"and the smallest one {FEWEST * 2**PQ_BITS:,}; take a smaller nlist, or the kind flat or hnsw"
            )

    def train(self, vectors: np.ndarray) -> None:
        """Train the groups and the compression, once."""
        if self._index.is_trained:
            return
        self.check_count(len(vectors))
        self._index.train(vectors)

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add rows."""
        self.train(vectors)
        rows, first = self.rows, len(self._deleted)
        self._index.add(vectors)
        self._chunks.append(pyarrow.array(ids, pyarrow.large_string()))
        self._deleted = np.concatenate([self._deleted, np.zeros(len(ids), bool)])
        rows.update(zip(ids, range(first, first + len(ids))))

    def delete(self, ids: Sequence[str]) -> None:
        """Mark the rows of some ids."""
        for one in ids:
            self._deleted[self.rows.pop(one)] = True

    def search(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
        """The best that are not deleted."""
        scores, found = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        # What is looked at grows until enough is found: there may be few in a group, or many that are deleted.
        (effort, most), todo = self._effort(k), np.arange(len(vectors))
        while len(todo):
            scores[todo], found[todo] = self._look(vectors[todo], k, effort)
            todo = todo[(found[todo] < 0).any(1)] if effort < most else todo[:0]
            effort = min(2 * effort, most)
        if self.config.metric == "euclidean":
            scores = -np.sqrt(np.maximum(scores, 0))
        ids = self._ids().take(pyarrow.array(np.maximum(found, 0).reshape(-1))).to_pylist()
        ids = [ids[start : start + k] for start in range(0, len(ids), k)]
        valid = found >= 0
        return [[one for one, fits in zip(row, keep) if fits] for row, keep in zip(ids, valid)], [
            row[keep] for row, keep in zip(scores, valid)
        ]

    def _effort(self, k: int) -> tuple[int, int]:
        """How many candidates or groups to look at first, and how many there are."""
        if self.config.kind == "hnsw":
            return min(max(self.config.ef_search, k), len(self._deleted)), len(self._deleted)
        return (self.config.nprobe, self.config.nlist) if self.config.kind == "ivfpq" else (1, 1)

    def _look(self, vectors: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows, [n, k], of what is not deleted; -1 for what is missing."""
        some_deleted, kind = self._deleted.any(), self.config.kind
        if kind == "hnsw":
            # A selector would have the graph stop among deleted ones and miss the nearest others.
            wide = effort if some_deleted else k
            scores, found = self._index.search(vectors, wide, params=faiss.SearchParametersHNSW(efSearch=effort))
            found[self._deleted[found]] = -1
            order = np.argsort(found < 0, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        live = np.packbits(~self._deleted, bitorder="little")
        options = {"sel": faiss.IDSelectorBitmap(live)} if some_deleted else {}
        if kind == "ivfpq":
            options["nprobe"] = effort
        parameters = faiss.SearchParametersIVF if kind == "ivfpq" else faiss.SearchParameters
        return self._index.search(vectors, k, params=parameters(**options))

    def save(self, folder: Path) -> str | None:
        """Write the index and the ids."""
        table = _rows(self._ids(), self._deleted)
        with pyarrow.OSFile(str(folder / IDS), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        faiss.write_index(self._index, str(folder / VECTORS))
        return None


def _rows(ids, deleted) -> pyarrow.Table:
    return pyarrow.table({"id": pyarrow.array(ids, pyarrow.large_string()), "deleted": pyarrow.array(deleted, pyarrow.bool_())})
