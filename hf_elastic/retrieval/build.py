"""An index of a collection of documents, from its files to a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from ..utils.folders import check_output
from ..utils.progress import Bar
from .data import Document
from .encode import RECORD, EncodedCorpus, encode_corpus, processes_of, scan_corpus
from .encode_config import EncodingConfig
from .index import Index, IndexConfig


def build_index(
    model: SentenceTransformer,
    corpus: str | Path | Sequence[Document],
    output_dir: str | Path,
    config: IndexConfig | None = None,
    encoding: EncodingConfig | None = None,
    *,
    work_dir: str | Path | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> EncodedCorpus:
    """Encode a collection and write its index; where that was interrupted, the same call goes on.

    Vectors are first written to the work folder. An interrupted encoding goes on after the last finished file; an interrupted
    FAISS index is made again from the files, an interrupted Milvus collection gets the documents that it lacks. Under
    `accelerate launch` all processes encode, and the first one makes the index.

    Args:
        model: encodes the documents.
        corpus: as for `read_corpus`, or the documents.
        output_dir: a new or empty folder for the index, or one that holds an index if `overwrite`.
        config: the options of the index; default: flat.
        encoding: the options of encoding.
        work_dir: a folder for the vectors, which stay there; default: OUTPUT_DIR.vectors, which is deleted when all is done.
        overwrite: whether an index that is there is replaced.
        show_progress: show bars.

    Returns:
        The vectors; with the default work folder their files are gone.

    Raises:
        UserError, MissingPackageError, OSError: as by `Index.create`, `encode_corpus` and `Index.save`.
    """
    is_first = processes_of(model).is_main_process
    folder = Path(f"{Path(output_dir)}.vectors" if work_dir is None else work_dir)
    inputs = {"work_dir": folder, **({"corpus": corpus} if isinstance(corpus, (str, Path)) else {})}
    check_output(output_dir, overwrite=overwrite, inputs=inputs)
    scan = scan_corpus(corpus)
    index = Index.create(model, config, content=scan.content) if is_first else None
    if index is not None:  # before hours of encoding
        index.check_count(scan.count)
    encoded = encode_corpus(model, corpus, folder, encoding, scan=scan, show_progress=show_progress)
    if index is not None:
        with Bar(show_progress, "documents") as bar:
            bar.start("indexing", 0, len(encoded))
            _fill(index, encoded, bar)
        index.save(output_dir, overwrite=overwrite, inputs=inputs)
        if work_dir is None:
            for path in (*(shard.path for shard in encoded.shards), folder / RECORD):
                path.unlink()
            folder.rmdir()
    return encoded


def _fill(index: Index, encoded: EncodedCorpus, bar: Bar) -> None:
    if index.training_rows:
        index.train(np.concatenate(list(_sample(encoded, index.training_rows))))
    for shard in encoded.shards:
        there = set(index.existing(shard.ids))
        rows = [row for row, one in enumerate(shard.ids) if one not in there]
        index.add([shard.ids[row] for row in rows], shard.vectors()[rows])
        bar.advance(len(shard.ids))


def _sample(encoded: EncodedCorpus, count: int) -> Iterator[np.ndarray]:
    """About so many vectors, evenly from all documents."""
    step, start = max(1, len(encoded) // count), 0
    for shard in encoded.shards:
        yield shard.vectors()[-start % step :: step]
        start += len(shard.ids)
