"""What an index is told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ...core.errors import UserError
from ...utils.options import check_integers

# Kind -> module and class of what keeps its vectors.
KINDS = {
    "flat": ("faiss", "FaissStore"),
    "hnsw": ("faiss", "FaissStore"),
    "ivfpq": ("faiss", "FaissStore"),
    "milvus": ("milvus", "MilvusStore"),
}
METRICS = ("cosine", "dot", "euclidean")


@dataclass
class IndexConfig:
    """How vectors are kept and searched.

    Raises:
        UserError: a value that is not allowed.
    """

    kind: str = field(
        default="flat",
        metadata={
            "help": "flat (exact), hnsw (a graph, fast and nearly exact), ivfpq (compressed, for very many documents), all of "
            "FAISS; or milvus."
        },
    )
    metric: str | None = field(
        default=None, metadata={"help": "cosine, dot or euclidean; default: the model's similarity function."}
    )
    hnsw_m: int = field(default=32, metadata={"help": "hnsw: links of each document (count)."})
    ef_construction: int = field(default=200, metadata={"help": "hnsw: candidates looked at when a document is added (count)."})
    ef_search: int = field(
        default=128, metadata={"help": "hnsw: candidates looked at in a search (count); more are exacter and slower."}
    )
    nlist: int = field(
        default=1024, metadata={"help": "ivfpq: groups of documents (count); each needs 39 documents to be trained on."}
    )
    nprobe: int = field(default=32, metadata={"help": "ivfpq: groups looked at in a search (count)."})
    pq_m: int | None = field(
        default=None,
        metadata={"help": "ivfpq: bytes that a vector is compressed to, a divisor of its dimension; default: an eighth of it."},
    )
    uri: str | None = field(
        default=None,
        metadata={"help": "milvus: a path ending in .db (embedded), or the URL of a server, whose token is in MILVUS_TOKEN."},
    )
    collection: str = field(
        default="hf_elastic", metadata={"help": "milvus: how the collection's name begins; it ends with the model's fingerprint."}
    )

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"kind: {self.kind!r} is unknown; known: {', '.join(KINDS)}")
        if self.metric is not None and self.metric not in METRICS:
            raise UserError(f"metric: {self.metric!r} is not supported; supported: {', '.join(METRICS)}")
        counts = ("hnsw_m", "ef_construction", "ef_search", "nlist", "nprobe")
        check_integers(1, **{name: getattr(self, name) for name in counts})
        check_integers(1, or_none=True, pq_m=self.pq_m)
        if self.hnsw_m < 2:
            raise UserError(f"hnsw_m must be at least 2, got {self.hnsw_m}")
        if self.nprobe > self.nlist:
            raise UserError(f"nprobe: {self.nprobe} is more than nlist, {self.nlist}")
        if (self.kind == "milvus") != (self.uri is not None):
            raise UserError("uri: give a path or a URL with kind milvus, and only with it")
        if self.uri is not None and "://" not in self.uri:
            self.uri = os.path.abspath(self.uri)
        if not self.collection.isidentifier() or not self.collection.isascii():
            raise UserError(f"collection: {self.collection!r} is no name; letters, digits and _ are allowed, a letter first")
