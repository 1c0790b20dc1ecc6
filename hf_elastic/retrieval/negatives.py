"""Hard negatives: documents that a first stage finds for a query, and that are not right for it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from datasets import Dataset

from ..core.errors import MissingPackageError, UserError
from ..utils.options import check_integers
from .data import RetrievalData
from .metrics import Run, top

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")
MISSING = "needs {}, which is not installed: run pip install 'hf-elastic[retrieval]'"


def bm25(data: RetrievalData, k: int = 100) -> Run:
    """Search with BM25: `bm25s` (Lù, 2024) with its defaults, English stop words and no stemming; the corpus is in memory.

    Args:
        data: the documents, and the queries with judgements or answers.
        k: documents for each query (count); fewer where fewer have a word of the query.

    Raises:
        MissingPackageError: bm25s is not installed.
        UserError: no document has a word.
    """
    check_integers(1, k=k)
    try:
        import bm25s
    except ImportError as error:
        raise MissingPackageError(f"bm25 {MISSING.format('bm25s')}") from error
    documents, queries = list(data.corpus), data.evaluated()
    words = bm25s.tokenize([document.text for document in documents], show_progress=False)
    if not any(word for word in words.vocab):
        raise UserError(f"{data.name}: no document has a word to search for")
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    asked = bm25s.tokenize(list(queries.values()), return_ids=False, show_progress=False)
    places, scores = index.retrieve(asked, k=min(k, len(documents)), show_progress=False)
    return {
        query: {documents[place].id: float(score) for place, score in zip(*found) if score > 0}
        for query, found in zip(queries, zip(places, scores))
    }


def positive_pairs(data: RetrievalData) -> Dataset:
    """Every query with each document that is relevant for it, once: columns `anchor` and `positive`.

    Raises:
        UserError: nothing is relevant.
    """
    rows = [(query, positive) for query, positives, _ in _judged(data) for positive in positives]
    return Dataset.from_dict({"anchor": [row[0] for row in rows], "positive": [row[1] for row in rows]})


def hard_negatives(
    data: RetrievalData,
    first_stage: Run | SentenceTransformer,
    *,
    num_negatives: int = 3,
    output_format: str = "triplet",
    range_min: int = 0,
    **options: object,
) -> Dataset:
    """Training data for the losses of sentence-transformers; what was judged relevant for a query is never its negative.

    Nor is a text that is the same as that of a relevant document. Documents that nobody has judged may well be right: skip the
    first ones with `range_min`, or give a SentenceTransformer and a `relative_margin`.

    Args:
        data: documents, queries and judgements.
        first_stage: a run, such as that of `bm25` or of `read_run`, or a model, which is handed to `mine_hard_negatives` of
            sentence-transformers with the whole corpus.
        num_negatives: for each positive (count); where a run has too few left, there are fewer, and with `n-tuple` no row.
        output_format: as `mine_hard_negatives` has them: `triplet` (anchor, positive, negative), `n-tuple` (anchor, positive,
            negative_1, ...), `labeled-pair` (anchor, positive, label: 1 or 0) or `labeled-list` (anchor, positive: list,
            labels: list).
        range_min: candidates to skip (count), the best ones.
        options: others of `mine_hard_negatives`, for a model.

    Raises:
        UserError: an unknown format, an option that a run has not, or nothing is relevant or no negative is found.
    """
    check_integers(1, num_negatives=num_negatives)
    check_integers(0, range_min=range_min)
    if output_format not in FORMATS:
        raise UserError(f"output_format: {output_format!r} is unknown; known: {', '.join(FORMATS)}")
    if not isinstance(first_stage, Mapping):
        from sentence_transformers.util import mine_hard_negatives

        corpus, pairs = [document.text for document in data.corpus], positive_pairs(data)
        shared = {"num_negatives": num_negatives, "output_format": output_format, "range_min": range_min}
        return mine_hard_negatives(pairs, first_stage, corpus=corpus, **shared, **options)
    if options:
        raise UserError(f"{', '.join(options)}: only for a model, not for a run")
    rows, judged, short = [], 0, 0
    for query, positives, negatives in _judged(data, first_stage, range_min, num_negatives):
        judged, short = judged + 1, short + (len(negatives) < num_negatives)
        rows += _rows(output_format, query, positives, negatives, num_negatives)
    if not rows:
        raise UserError(f"{data.name}: the run has no negatives")
    if short:
        logger.warning("%s: %d of %d queries have fewer than %d negatives in the run", data.name, short, judged, num_negatives)
    return Dataset.from_list(rows)


def _judged(
    data: RetrievalData, run: Run | None = None, skipped: int = 0, count: int = 0
) -> Iterator[tuple[str, list[str], list[str]]]:
    """The text of each query for which something is relevant, the texts of that, and of its first negatives in a run."""
    run = run or {}
    relevant = {query: [name for name, score in found.items() if score > 0] for query, found in data.qrels.items()}
    relevant = {query: found for query, found in relevant.items() if found}
    if not relevant:
        raise UserError(f"{data.name}: no document is judged relevant for a query")
    asked_again = defaultdict(set)  # two queries may have the same text
    for query, found in relevant.items():
        asked_again[data.queries[query]].update(found)
    names = {name for query in relevant for name in (*relevant[query], *run.get(query, ()))}
    documents = data.documents(names)
    for query, positives in relevant.items():
        texts = list(dict.fromkeys(documents[name].text for name in positives if name in documents))
        right = {documents[name].text for name in asked_again[data.queries[query]] if name in documents}
        found = run.get(query, {})
        candidates = dict.fromkeys(documents[name].text for name in top(found, len(found)) if name in documents)
        negatives = [text for text in candidates if text not in right][skipped : skipped + count]
        if texts:
            yield data.queries[query], texts, negatives


def _rows(kind: str, query: str, positives: list[str], negatives: list[str], count: int) -> list[dict]:
    if kind == "triplet":
        return [{"anchor": query, "positive": right, "negative": wrong} for right in positives for wrong in negatives]
    if kind == "labeled-pair":
        labelled = [(text, 1) for text in positives] + [(text, 0) for text in negatives]
        return [{"anchor": query, "positive": text, "label": label} for text, label in labelled if negatives]
    if kind == "labeled-list":
        labels = [1] + [0] * len(negatives)
        return [{"anchor": query, "positive": [right, *negatives], "labels": labels} for right in positives if negatives]
    if len(negatives) < count:
        return []
    numbered = {f"negative_{place}": text for place, text in enumerate(negatives, 1)}
    return [{"anchor": query, "positive": right, **numbered} for right in positives]
