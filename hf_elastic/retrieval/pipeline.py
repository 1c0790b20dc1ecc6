"""Two stages: an index finds candidates for a query, and a ranker reorders them; each at a size of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..utils.options import check_integers
from .data import Document
from .graph import GraphTransformer
from .index import Index
from .loading import index_fingerprint, index_tower
from .metrics import top
from .results import Subnet, check_one_label, size_argument, size_name


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: its id.
        score: of the ranker, or of the index where no ranker was asked.
        text: its text.
    """

    id: str
    score: float
    text: str


class RetrievalPipeline:
    """A denser and an index find k candidates for each query, and a ranker reorders them.

    All candidates of a query are scored by one size of the ranker: scores of two sizes do not compare. Several threads may
    search at once, each with sizes of its own. Small query encoders and small rankers over one index of the full size are
    ElasticLM's (arXiv 2311.07204).

    Args:
        denser: encodes queries; a plain SentenceTransformer has no sizes. A graph of `load_graph` has no document tower to
            compare with the index: that its queries go there is up to the caller.
        index: holds the documents that the denser has encoded. A new `Index.create(denser)` with what `encode_document` gives is
            an exact search over vectors.
        documents: gives the text of a document as `documents[id]`: a dict, or `CorpusTexts` where memory is too small for one.
        ranker: a CrossEncoder with one label; None for the first stage alone.
        k: how many candidates the ranker scores (count); 0 for the first stage alone.
        denser_subnet, ranker_subnet: sizes, by name or axes; None for the full ones.
        batch_size: texts per forward (count).

    Raises:
        UserError: a number is too small, the index belongs to another model, the ranker has several labels, or there is a size
            for a ranker and no ranker.
    """

    def __init__(
        self,
        denser: SentenceTransformer,
        index: Index,
        documents: Mapping[str, str] | CorpusTexts,
        ranker: CrossEncoder | None = None,
        k: int = 100,
        denser_subnet: Subnet = None,
        ranker_subnet: Subnet = None,
        *,
        batch_size: int = 32,
    ):
        check_integers(0, k=k)
        check_integers(1, batch_size=batch_size)
        if ranker is None and ranker_subnet is not None:
            raise UserError(f"ranker_subnet: {size_name(ranker_subnet)!r}, and there is no ranker")
        if ranker is not None:
            check_one_label(ranker)
        self.denser, self.index, self.documents, self.ranker = denser, index, documents, ranker
        self.k, self.batch_size = 0 if ranker is None else k, batch_size
        self.denser_subnet, self.ranker_subnet = denser_subnet, ranker_subnet
        self._fitting: set[str] = set()
        self._check_index(denser_subnet)

    def search(
        self,
        queries: Sequence[str],
        top: int = 10,
        *,
        k: int | None = None,
        denser_subnet: Subnet = None,
        ranker_subnet: Subnet = None,
    ) -> list[list[Hit]]:
        """The best documents for queries.

        An empty query is encoded, and scored, as the empty text.

        Args:
            queries: texts.
            top: documents for each query (count); fewer come back where the index has fewer.
            k, denser_subnet, ranker_subnet: instead of the pipeline's own, for this call; "full" names a full size.

        Returns:
            For each query its documents, best first; of those that the ranker finds equal, the first stage's order stays.

        Raises:
            UserError: no such size, more hits than candidates are asked for, or a document that was found has no text.
        """
        if isinstance(queries, str):
            raise UserError(f"queries: needed is a list of texts, got the text {queries[:40]!r}")
        check_integers(1, top=top)
        check_integers(0, or_none=True, k=k)
        k = self.k if k is None else k
        if k and self.ranker is None:
            raise UserError(f"k: {k} candidates for a ranker, and the pipeline has none")
        if not k and ranker_subnet is not None:
            raise UserError(f"ranker_subnet: {size_name(ranker_subnet)!r}, and no ranker is asked, as k is 0")
        if 0 < k < top:
            raise UserError(f"top: {top} hits cannot be of k={k} candidates; needed is a k of at least {top}, or 0 for no ranker")
        found = self.candidates(self.encode(queries, denser_subnet), k or top)
        if k:
            found = self.rerank(queries, found, ranker_subnet)
        return [[Hit(name, score, self._text(name)) for name, score in list(row.items())[:top]] for row in found]

    def encode(self, queries: Sequence[str], denser_subnet: Subnet = None) -> np.ndarray:
        """The vectors of queries, float32[queries, dimension].

        Args:
            queries: texts.
            denser_subnet: as for `search`.

        Raises:
            UserError: no such size, or one that is not that of the index in a symmetric model.
        """
        subnet = self.denser_subnet if denser_subnet is None else denser_subnet
        size = size_argument(self.denser, subnet, "denser_subnet")
        self._check_index(subnet)
        options = {"batch_size": self.batch_size, "convert_to_numpy": True, "show_progress_bar": False}
        return np.asarray(self.denser.encode_query(list(queries), **options, **size), np.float32)

    def candidates(self, vectors: np.ndarray, count: int) -> list[dict[str, float]]:
        """For each query vector the scores of at most `count` documents by id, best first."""
        if not len(vectors):
            return []
        return [dict(zip(ids, map(float, scores))) for ids, scores in zip(*self.index.search(vectors, count))]

    def rerank(
        self, queries: Sequence[str], found: Sequence[Mapping[str, float]], ranker_subnet: Subnet = None
    ) -> list[dict[str, float]]:
        """The ranker's scores of what was found for each query, best first.

        Args:
            queries: texts.
            found: for each its candidates, by id.
            ranker_subnet: as for `search`; one size for all.

        Raises:
            UserError: no such size, or a candidate has no text.
        """
        size = size_argument(self.ranker, self.ranker_subnet if ranker_subnet is None else ranker_subnet, "ranker_subnet")
        pairs = [(query, self._text(name)) for query, row in zip(queries, found) for name in row]
        options = {"batch_size": self.batch_size, "convert_to_numpy": True, "show_progress_bar": False}
        scores = map(float, self.ranker.predict(pairs, **options, **size) if pairs else [])
        scored = [dict(zip(row, scores)) for row in found]  # the row first, so that it takes no score of the next one
        return [{name: row[name] for name in top(row, len(row))} for row in scored]

    def _check_index(self, subnet: Subnet) -> None:
        """Refuse an index that the queries of a size do not go to; a tower is compared once."""
        size_argument(self.denser, subnet, "denser_subnet")
        tower = size_name(subnet) if getattr(self.denser, "mode", None) == "symmetric" else FULL
        if tower in self._fitting:
            return
        is_graph = any(isinstance(module, GraphTransformer) for module in self.denser.modules())  # no document tower to compare
        if isinstance(self.index, Index) and not is_graph:
            self.index.fingerprint.check(index_fingerprint(index_tower(self.denser, subnet)), "the index")
        self._fitting.add(tower)

    def _text(self, name: str) -> str:
        try:
            return self.documents[name]
        except KeyError:
            raise UserError(f"documents: there is no text for {name!r}, which is in the index") from None


class CorpusTexts:
    """The texts of documents by id, in a temporary file instead of in memory; `texts[id]` reads one, from any thread.

    SQLite deletes the file when the object goes, or the process.

    Args:
        corpus: the documents, such as `read_corpus` or `RetrievalData.corpus` gives; read through once.

    Raises:
        UserError: an id is there twice, or the disk is full.
    """

    def __init__(self, corpus: Iterable[Document]):
        self._lock = Lock()
        self._database = sqlite3.connect("", check_same_thread=False)
        rows = ((document.id, document.text) for document in corpus)
        try:
            self._database.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT NOT NULL)")
            self._database.executemany("INSERT INTO texts VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise UserError(f"corpus: its texts cannot be kept in a temporary file of SQLite: {error}") from error

    def __getitem__(self, name: str) -> str:
        with self._lock:
            row = self._database.execute("SELECT text FROM texts WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return row[0]
