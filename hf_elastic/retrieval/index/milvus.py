"""Milvus: the embedded engine for a path, a server for a URL; the same code."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...core.errors import MissingPackageError, UserError
from .base import Store
from .config import IndexConfig

try:
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError as error:
    raise MissingPackageError("pymilvus is not installed: run pip install 'hf-elastic[milvus]'") from error

ROWS = 1000  # in one message
MOST_RESULTS = 16_384  # of one search, a limit of Milvus
LONGEST_ID = 65_535  # bytes, a limit of Milvus


class MilvusStore(Store):
    """A collection, whose name ends with what fills it: another tower's vectors have another collection.

    What is added or deleted is in Milvus at once; saving notes where it is.
    """

    def __init__(self, config: IndexConfig, dimension: int, collection: str):
        super().__init__(config, dimension)
        self.collection = collection
        with _one_line(config.uri):
            self._client = MilvusClient(config.uri, token=os.environ.get("MILVUS_TOKEN", ""))

    @classmethod
    def create(cls, config: IndexConfig, dimension: int, identity: str, *, resume: bool) -> MilvusStore:
        """A new collection, or the one that was begun for the same content."""
        if "://" not in config.uri:
            Path(config.uri).parent.mkdir(parents=True, exist_ok=True)
        store = cls(config, dimension, f"{config.collection}_{identity[:16]}")
        with _one_line(config.uri):
            if store._client.has_collection(store.collection):
                if not resume:
                    raise UserError(f"uri: {config.uri} has a collection {store.collection} already; choose another collection")
                store._client.load_collection(store.collection)
                return store
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
            index = store._client.prepare_index_params()
            index.add_index("vector", index_type="AUTOINDEX", metric_type="L2" if config.metric == "euclidean" else "IP")
            # A search sees what was added before it.
            store._client.create_collection(store.collection, schema=schema, index_params=index, consistency_level="Strong")
        return store

    @classmethod
    def load(cls, folder: Path, config: IndexConfig, dimension: int, place: str | None, *, mmap: bool) -> MilvusStore:
        """Connect to a collection."""
        if "://" not in config.uri and not Path(config.uri).exists():
            raise UserError(f"the Milvus data of the index {folder} are not at {config.uri}")
        store = cls(config, dimension, place)
        with _one_line(config.uri):
            if not store._client.has_collection(place):
                raise UserError(f"Milvus at {config.uri} has no collection {place}, which the index {folder} names")
            store._client.load_collection(place)
        return store

    @property
    def count(self) -> int:
        """How many documents it has."""
        with _one_line(self.config.uri):
            return self._client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def existing(self, ids: Sequence[str]) -> list[str]:
        """Those of some ids that are in it."""
        with _one_line(self.config.uri):
            parts = [self._client.get(self.collection, ids=part, output_fields=["id"]) for part in _parts(list(ids))]
        return [row["id"] for rows in parts for row in rows]

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Write them to the collection."""
        for one in ids:
            if len(one.encode()) > LONGEST_ID:
                raise UserError(f"Milvus takes ids of at most {LONGEST_ID:,} bytes; {one[:40]!r}... has more")
        with _one_line(self.config.uri):
            for part in _parts([{"id": one, "vector": vector} for one, vector in zip(ids, vectors)]):
                self._client.upsert(self.collection, part)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete them from the collection."""
        with _one_line(self.config.uri):
            for part in _parts(list(ids)):
                self._client.delete(self.collection, ids=part)

    def search(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
        """The best that Milvus finds."""
        if k > MOST_RESULTS:
            raise UserError(f"k: Milvus gives at most {MOST_RESULTS:,} results, got {k:,}")
        with _one_line(self.config.uri):
            parts = [
                self._client.search(self.collection, data=part, limit=k, output_fields=["id"]) for part in _parts(list(vectors))
            ]
        found = [hits for hit_lists in parts for hits in hit_lists]
        scores = [np.array([hit["distance"] for hit in hits], np.float32) for hits in found]
        if self.config.metric == "euclidean":  # Milvus has squares
            scores = [-np.sqrt(np.maximum(row, 0)) for row in scores]
        return [[hit["id"] for hit in hits] for hits in found], scores

    def save(self, folder: Path) -> str | None:
        """Have Milvus write everything to its disk; the place is the collection's name."""
        with _one_line(self.config.uri):
            self._client.flush(self.collection)
        return self.collection


def _parts(rows: list) -> Iterator[list]:
    for start in range(0, len(rows), ROWS):
        yield rows[start : start + ROWS]


@contextmanager
def _one_line(uri: str) -> Iterator[None]:
    """What Milvus raises is about the place that the user named; their own logs have tracebacks of it.

    Raises:
        UserError: names it.
    """
    logs = [logging.getLogger(name) for name in ("pymilvus", "milvus_lite")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except MilvusException as error:
        raise UserError(f"Milvus at {uri}: {error.message or error}") from error
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)
