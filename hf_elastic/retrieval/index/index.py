"""An index: vectors of documents under their ids, and the fingerprint of the tower that they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from ...core.errors import UserError
from ...utils.files import reading
from ...utils.folders import filled
from ..fingerprint import Fingerprint, fingerprint_of
from ..loading import index_fingerprint
from .base import Store
from .config import KINDS, METRICS, IndexConfig

RECORD, FORMAT = "index.json", 1
BLOCK = 2**24  # bytes that are read at once


class Index:
    """Made by `create` or `load`.

    Attributes:
        config: its options; `config.metric` is set.
        fingerprint: of the tower whose vectors it holds.
    """

    def __init__(self, model: SentenceTransformer, config: IndexConfig, fingerprint: Fingerprint, store: Store):
        self._model, self.config, self.fingerprint, self._store = model, config, fingerprint, store

    @classmethod
    def create(
        cls, model: SentenceTransformer, config: IndexConfig | None = None, *, content: str | None = None, **options: object
    ) -> Index:
        """An empty index for the documents of a model.

        Args:
            model: encodes them.
            config: the options; default: flat.
            content: a hash of what will be added. With it, a Milvus collection that was begun for the same content and the same
                tower is gone on with, which without it is refused.
            options: fields of `IndexConfig`, instead of it.

        Raises:
            UserError: an option is not allowed, the model's similarity function is not supported, or as by `fingerprint_of`.
            MissingPackageError: FAISS or pymilvus is not installed.
        """
        config = IndexConfig(**options) if config is None else dataclasses.replace(config, **options)
        metric = config.metric or model.similarity_fn_name
        if metric not in METRICS:
            raise UserError(f"metric: the model's similarity function {metric!r} is not supported; choose {', '.join(METRICS)}")
        config = dataclasses.replace(config, metric=metric)
        fingerprint = fingerprint_of(model)
        identity = hashlib.sha256(f"{fingerprint.digest} {metric} {content}".encode()).hexdigest()
        store = _store_class(config.kind).create(config, fingerprint.parts["dimension"], identity, resume=content is not None)
        return cls(model, config, fingerprint, store)

    @classmethod
    def load(cls, folder: str | Path, model: SentenceTransformer, *, mmap: bool = True, verify: bool = True) -> Index:
        """An index that was saved.

        Args:
            folder: where it is.
            model: encodes documents with the tower that filled it, its queries may come from another tower; or an `ElasticDenser`
                for queries alone that is aligned to that tower.
            mmap: FAISS: leave the vectors on the disk until they are needed; the index can then not be added to.
            verify: compare the hash of each file, for which all of it is read; False compares the sizes alone.

        Raises:
            UserError: it is no index, is incomplete or changed, or belongs to another tower; the message names both.
        """
        folder = Path(folder)
        config, fingerprint, record = read_record(folder)
        for name, facts in record["files"].items():
            _check_file(folder / name, facts, verify=verify)
        fingerprint.check(index_fingerprint(model), f"the index {folder}")
        try:
            store = _store_class(config.kind).load(folder, config, record["dimension"], record["place"], mmap=mmap)
        except (OSError, RuntimeError) as error:
            raise UserError(f"the index {folder} cannot be read: {str(error).splitlines()[0]}") from error
        return cls(model, config, fingerprint, store)

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.fingerprint.parts["dimension"]

    @property
    def training_rows(self) -> int:
        """How many vectors `train` would take before any is added; 0: none."""
        return self._store.training_rows

    def __len__(self) -> int:
        return self._store.count

    def check_count(self, count: int) -> None:
        """Raise UserError if so many documents are too few to train an ivfpq index on."""
        self._store.check_count(count)

    def existing(self, ids: Sequence[str]) -> list[str]:
        """Those of some ids that are in the index."""
        return self._store.existing(ids)

    def train(self, vectors: np.ndarray) -> None:
        """Show an ivfpq index what vectors are like; without it the first `add` does, with its own.

        Raises:
            UserError: they are too few, or as by `add`.
        """
        self._store.train(self._checked(vectors))

    def add(self, ids: Sequence[str], documents: Sequence[str] | np.ndarray) -> None:
        """Add documents.

        Args:
            ids: one for each, a text that is not in the index yet.
            documents: their texts, which the model encodes, or their vectors, float[rows, dimension].

        Raises:
            UserError: an id is there twice or no text, numbers or dimensions do not agree, a vector holds what is no number, the
                model has changed, the index is memory-mapped, or too few documents are there to train on.
        """
        if self._store.is_read_only:
            raise UserError("the index is memory-mapped and cannot be added to; load it with mmap=False")
        ids = list(ids)
        if len(ids) != len(documents):
            raise UserError(f"{len(ids):,} ids for {len(documents):,} documents")
        self._check_new(ids)
        if not ids:
            return
        if isinstance(documents[0], str):
            self.fingerprint.check(fingerprint_of(self._model), "the index")
            documents = self._model.encode_document(list(documents), show_progress_bar=False)
        self._store.add(ids, self._checked(documents))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete documents; none is deleted if one of them is not there.

        Raises:
            UserError: an id is not in the index, or given twice.
        """
        ids = list(ids)
        there = set(self._store.existing(ids))
        for one, times in Counter(ids).items():
            if one not in there or times > 1:
                raise UserError(f"the id {one!r} is {'given twice' if one in there else 'not in the index'}; nothing is deleted")
        self._store.delete(ids)

    def search(self, vectors: np.ndarray, k: int = 10) -> tuple[list[list[str]], list[np.ndarray]]:
        """The best documents for queries.

        Args:
            vectors: of queries, float[n, dimension].
            k: how many for each; fewer come back where the index has fewer.

        Returns:
            For each query the ids, best first, and their scores, as the model's `similarity` has them: float32[at most k].

        Raises:
            UserError: the vectors have another dimension or hold what is no number, or `k` is no count.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(f"k must be an integer of at least 1, got {k!r}")
        vectors = self._checked(vectors)
        k = min(k, len(self))
        if not k or not len(vectors):
            return [[] for _ in vectors], [np.zeros(0, np.float32) for _ in vectors]
        return self._store.search(vectors, k)

    def save(self, folder: str | Path, *, overwrite: bool = False, inputs: Mapping[str, object] | None = None) -> None:
        """Write the index; the folder holds all of it or what it held before.

        Args:
            folder: a new or empty one, or one that `save` has written if `overwrite`.
            overwrite: whether that is replaced.
            inputs: paths that the folder may not contain, by name.

        Raises:
            UserError: as by `hf_elastic.utils.folders.filled`.
            OSError: the disk is full.
        """
        with filled(folder, overwrite=overwrite, inputs=inputs) as new:
            place = self._store.save(new)
            record = {
                "format": FORMAT,
                "count": len(self),
                "dimension": self.dimension,
                "config": dataclasses.asdict(self.config),
                "fingerprint": dataclasses.asdict(self.fingerprint),
                "place": place,
                "files": {path.name: _facts_of(path) for path in sorted(new.iterdir())},
            }
            (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _check_new(self, ids: list[str]) -> None:
        for one, times in Counter(ids).items():
            if not isinstance(one, str):
                raise UserError(f"an id is a text, got {one!r}")
            if times > 1:
                raise UserError(f"the id {one!r} is given twice")
        if there := self._store.existing(ids):
            raise UserError(f"the id {there[0]!r} is in the index already; delete it first")

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors as FAISS and Milvus take them: float32, of unit length for cosine (a vector of zeros stays)."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or (vectors.shape[1] != self.dimension and len(vectors)):
            shape = " x ".join(map(str, vectors.shape))
            raise UserError(f"the index holds vectors of {self.dimension} dimensions, got an array of {shape}")
        if not (finite := np.isfinite(vectors).all(1)).all():
            raise UserError(f"the vector of row {int(np.flatnonzero(~finite)[0])} holds a value that is no number")
        if self.config.metric == "cosine":
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def read_record(folder: Path) -> tuple[IndexConfig, Fingerprint, dict]:
    """What an index says of itself: its options, the tower that filled it, and all of its record.

    Raises:
        UserError: there is no index, or what it says is damaged.
    """
    if not (folder / RECORD).is_file():
        raise UserError(f"index: {folder} is no index, it has no {RECORD}")
    with reading(folder / RECORD, "index", "is not the record of an index"):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"it has the format {record['format']!r}, and this version reads {FORMAT}")
        config, fingerprint = IndexConfig(**record["config"]), Fingerprint(**record["fingerprint"])
        dimension, _, _ = record["dimension"], record["place"], record["files"].items()
        if dimension != fingerprint.parts["dimension"]:
            raise ValueError(f"its dimension {dimension!r} is not that of its fingerprint")
    return config, fingerprint, record


def _store_class(kind: str) -> type[Store]:
    module, name = KINDS[kind]
    return getattr(import_module(f".{module}", __package__), name)


def _facts_of(path: Path) -> dict[str, object]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _check_file(path: Path, facts: Mapping[str, object], *, verify: bool) -> None:
    """Raise UserError unless a file is the one that was written."""
    if not path.is_file():
        raise UserError(f"the index is incomplete: {path} is missing")
    if (size := path.stat().st_size) != facts["bytes"]:
        raise UserError(f"the index is damaged: {path} has {size:,} bytes, {facts['bytes']:,} were written")
    if verify and _facts_of(path)["sha256"] != facts["sha256"]:
        raise UserError(f"the index is damaged: {path} is not what was written, its sha256 differs")
