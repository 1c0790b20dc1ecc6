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
TRAINING_ROWS = 256  # for each group: as many as FAISS takes at most


class FaissStore(Store):
    """A FAISS index, and the id of each of its rows.

    FAISS cannot remove rows from a graph, so a deleted one is marked and never found; it goes when the index is made again.
    """

    def __init__(self, config: IndexConfig, dimension: int, index: faiss.Index, rows: pyarrow.Table, *, read_only: bool = False):
        super().__init__(config, dimension)
        self._index, self._ids, self._read_only = index, rows["id"].combine_chunks(), read_only
        self._deleted = rows["deleted"].to_numpy().copy()
        self._rows: dict[str, int] | None = None

    @classmethod
    def create(cls, config: IndexConfig, dimension: int, identity: str, *, resume: bool) -> FaissStore:
        metric = faiss.METRIC_L2 if config.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
        if config.kind == "flat":
            index = faiss.IndexFlat(dimension, metric)
        elif config.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dimension, config.hnsw_m, metric)
            index.hnsw.efConstruction = config.ef_construction
        else:
            if dimension % config.pq_m:
                raise UserError(f"pq_m: {config.pq_m} does not divide the dimension of the vectors, {dimension}")
            index = faiss.IndexIVFPQ(
                faiss.IndexFlat(dimension, metric), dimension, config.nlist, config.pq_m, PQ_BITS, metric
            )
        return cls(config, dimension, index, _rows([], []))

    @classmethod
    def load(cls, folder: Path, config: IndexConfig, dimension: int, place: str | None, *, mmap: bool) -> FaissStore:
        with pyarrow.memory_map(str(folder / IDS)) as file:
            rows = pyarrow.ipc.open_file(file).read_all()
        index = faiss.read_index(str(folder / VECTORS), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        return cls(config, dimension, index, rows, read_only=mmap)

    @property
    def count(self) -> int:
        return len(self._deleted) - int(self._deleted.sum())

    @property
    def rows(self) -> dict[str, int]:
        """The row of each id; made when it is first needed, which a search does not."""
        if self._rows is None:
            live = np.flatnonzero(~self._deleted)
            self._rows = dict(zip(self._ids.take(pyarrow.array(live)).to_pylist(), live.tolist()))
        return self._rows

    def existing(self, ids: Sequence[str]) -> list[str]:
        return [one for one in ids if one in self.rows]

    def train(self, vectors: np.ndarray) -> None:
        if self._index.is_trained:
            return
        needed = max(self.config.nlist, 2**PQ_BITS)
        if len(vectors) < needed:
            raise UserError(
                f"ivfpq: {len(vectors):,} documents are too few to train on, at least {needed:,} are needed for nlist "
                f"{self.config.nlist:,}; take a smaller nlist (2**8 documents are always needed), or the kind flat or hnsw"
            )
        self._index.train(vectors)

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        if self._read_only:
            raise UserError("the index is memory-mapped and cannot be added to; load it with mmap=False")
        self.train(vectors)
        rows, first = self.rows, len(self._ids)
        self._index.add(vectors)
        self._ids = pyarrow.concat_arrays([self._ids, pyarrow.array(ids, pyarrow.large_string())])
        self._deleted = np.concatenate([self._deleted, np.zeros(len(ids), bool)])
        rows.update(zip(ids, range(first, first + len(ids))))

    def delete(self, ids: Sequence[str]) -> None:
        for one in ids:
            self._deleted[self.rows.pop(one)] = True

    def search(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
        # What is looked at grows until enough is found: those that are deleted, or few in a group, use up the places.
        effort, most = self._effort(k)
        while True:
            scores, found = self._index.search(vectors, k, params=self._parameters(effort))
            if effort >= most or (found >= 0).all():
                break
            effort = min(2 * effort, most)
        if self.config.metric == "euclidean":
            scores = -np.sqrt(np.maximum(scores, 0))
        ids = self._ids.take(pyarrow.array(np.maximum(found, 0).reshape(-1))).to_pylist()
        ids = [ids[start : start + k] for start in range(0, len(ids), k)]
        valid = found >= 0
        return [[one for one, fits in zip(row, keep) if fits] for row, keep in zip(ids, valid)], [
            row[keep] for row, keep in zip(scores, valid)
        ]

    def _effort(self, k: int) -> tuple[int, int]:
        """How many candidates or groups to look at first, and how many there are."""
        if self.config.kind == "hnsw":
            return max(self.config.ef_search, k), len(self._deleted)
        return (self.config.nprobe, self.config.nlist) if self.config.kind == "ivfpq" else (1, 1)

    def _parameters(self, effort: int) -> faiss.SearchParameters:
        options = {}
        if self._deleted.any():
            self._packed = np.packbits(~self._deleted, bitorder="little")  # FAISS does not copy it
            options["sel"] = faiss.IDSelectorBitmap(self._packed)
        if self.config.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=effort, **options)
        return faiss.SearchParametersIVF(nprobe=effort, **options) if self.config.kind == "ivfpq" else faiss.SearchParameters(**options)

    def save(self, folder: Path) -> str | None:
        table = _rows(self._ids, self._deleted)
        with pyarrow.OSFile(str(folder / IDS), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        faiss.write_index(self._index, str(folder / VECTORS))
        return None


def _rows(ids, deleted) -> pyarrow.Table:
    return pyarrow.table({"id": pyarrow.array(ids, pyarrow.large_string()), "deleted": pyarrow.array(deleted, pyarrow.bool_())})
