"""Metrics of sizes: of a model that searches, and of a ranker that reorders what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import semantic_search

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..utils.folders import check_output, filled
from ..utils.options import check_integers
from .data import RetrievalData, chunks
from .denser import ElasticDenser
from .evaluate_config import EvaluateRetrievalConfig
from .index import Index
from .loading import index_tower
from .metrics import METRICS, Run, check_metrics, compare, read_run, score_run, top, write_run
from .results import FIRST_STAGE, RetrievalResults, SizeResult, Subnet, check_one_label, size_argument, size_name
from .rows import some_of

CHUNK = 8192  # documents that are encoded, sorted by length, in one go


def evaluate_retrieval(
    model: SentenceTransformer,
    data: RetrievalData,
    *,
    subnets: Sequence[Subnet] = (None,),
    metrics: Sequence[str] = METRICS,
    k: int = 100,
    batch_size: int = 32,
    index: Index | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    permutations: int = 100_000,
    seed: int = 0,
) -> RetrievalResults:
    """Search with each size of the query side in documents that the full size has encoded, once.

    A symmetric `ElasticDenser` encodes the documents at each size anew.

    The search is exact, by the model's own similarity; all document vectors are in memory, but with an `index`. Queries without
    judgements and answers are not searched for.

    Args:
        model: any SentenceTransformer; one without sizes has only the subnet None.
        data: documents, queries and what is right.
        subnets: sizes that encode queries, by name or axes; None is the full one, which the others are compared with.
        metrics: see `check_metrics`.
        k: documents for each query (count).
        batch_size: texts per forward (count).
        index: searched instead of encoding the corpus.
        output_dir: folder for `results.json` and a TREC run file of each size.
        overwrite: whether what was written there before is replaced.
        permutations, seed: of the test, see `compare`.

    Raises:
        UserError: a number is too small, a metric unknown, a size there twice, or as by `score_run` and `filled`.
    """
    check_integers(1, k=k, batch_size=batch_size)
    check_metrics(metrics, k)
    queries = data.evaluated()
    is_symmetric = isinstance(model, ElasticDenser) and model.mode == "symmetric"
    if is_symmetric and index is not None and any(model.name_of(subnet) is not None for subnet in subnets):
        raise UserError("index: it is of one size, and queries of a symmetric model want one of their own size; leave it out")

    def search() -> list[Run]:
        # Before the documents, which take long: a size that does not exist, or does not fit them, is told at once.
        encoded = [
            model.encode_query(
                list(queries.values()), batch_size=batch_size, convert_to_numpy=True, **size_argument(model, subnet)
            )
            for subnet in subnets
        ]
        if index is not None:
            found = [index.search(np.asarray(vectors, dtype=np.float32), k) for vectors in encoded]
            return [
                {query: dict(zip(names, map(float, row))) for query, names, row in zip(queries, ids, scores)}
                for ids, scores in found
            ]
        if not is_symmetric:
            _check_dimensions(model, subnets, encoded)
        found = []
        for number, (subnet, vectors) in enumerate(zip(subnets, encoded)):
            if is_symmetric or not number:
                ids, documents = encode_documents(model, data, batch_size, subnet if is_symmetric else None)
            hits = semantic_search(vectors, documents, top_k=min(k, len(ids)), score_function=model.similarity)
            found.append({query: {ids[hit["corpus_id"]]: hit["score"] for hit in row} for query, row in zip(queries, hits)})
        return found

    return _evaluate(search, data, subnets, metrics, output_dir, overwrite, permutations, seed)


def evaluate_reranking(
    ranker: CrossEncoder,
    data: RetrievalData,
    run: Mapping[str, Mapping[str, float]],
    *,
    k: int = 100,
    subnets: Sequence[Subnet] = (None,),
    metrics: Sequence[str] = METRICS,
    batch_size: int = 32,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    permutations: int = 100_000,
    seed: int = 0,
) -> RetrievalResults:
    """Reorder the first k documents of a run with each size of a ranker; the others are dropped.

    All candidates of a query are scored by the same size. The results begin with the first stage itself, cut to k.

    Args:
        ranker: a CrossEncoder with one label; one without sizes has only the subnet None.
        data: documents, queries and what is right.
        run: what a first stage has found; queries that nothing is known about are left out, and counted in the results.
        k: documents for each query (count).
        subnets, metrics, batch_size, output_dir, overwrite, permutations, seed: as for `evaluate_retrieval`.

    Raises:
        UserError: the run has documents that the data lacks, no query of the data, or the ranker has several labels; or as by
            `evaluate_retrieval`.
    """
    check_integers(1, k=k, batch_size=batch_size)
    check_metrics(metrics, k)
    check_one_label(ranker)
    queries = data.evaluated()
    cut = {query: {name: found[name] for name in top(found, k)} for query, found in run.items()}
    pairs = [(query, name) for query, found in cut.items() if query in queries for name in found]
    if not pairs:
        raise UserError(f"run: has no documents for a query of {data.name}")
    documents = data.documents({name for _, name in pairs})
    if missing := {name for _, name in pairs} - set(documents):
        raise UserError(f"run: {len(missing)} documents are not in {data.name} ({some_of(missing)})")
    texts = [(queries[query], documents[name].text) for query, name in pairs]

    def rerank() -> list[Run]:
        for subnet in subnets:
            ranker.predict(texts[:1], **size_argument(ranker, subnet))  # a size that does not exist is told at once
        runs = []
        for subnet in subnets:
            scores = ranker.predict(texts, batch_size=batch_size, convert_to_numpy=True, **size_argument(ranker, subnet))
            runs.append({query: {} for query in cut if query in queries})
            for (query, name), score in zip(pairs, scores):
                runs[-1][query][name] = float(score)
        return runs

    return _evaluate(rerank, data, subnets, metrics, output_dir, overwrite, permutations, seed, first_stage=cut)


def encode_documents(
    model: SentenceTransformer, data: RetrievalData, batch_size: int = 32, subnet: Subnet = None
) -> tuple[list[str], np.ndarray]:
    """The ids of all documents, and their vectors at a size `float[documents, dimension]`; the texts are streamed."""
    ids, vectors = [], []
    for documents in chunks(data.corpus, CHUNK):
        ids += [document.id for document in documents]
        texts = [document.text for document in documents]
        vectors.append(model.encode_document(texts, batch_size=batch_size, convert_to_numpy=True, **size_argument(model, subnet)))
    return ids, np.concatenate(vectors)


def run(
    config: EvaluateRetrievalConfig, load_model: Callable = SentenceTransformer, load_ranker: Callable = CrossEncoder
) -> RetrievalResults:
    """Do what the options say.

    Args:
        config: the options.
        load_model, load_ranker: given a folder or Hub id and the device, the model or ranker.

    Raises:
        UserError, OSError: as by `load_retrieval`, `read_run`, `evaluate_retrieval` and `evaluate_reranking`.
    """
    check_metrics(config.metrics, config.k)
    data = config.load()
    names = ("metrics", "k", "batch_size", "output_dir", "overwrite", "permutations", "seed")
    shared = {"subnets": (None, *(config.subnets or ())), **{name: getattr(config, name) for name in names}}
    if config.ranker is not None:
        found = read_run(config.run)
        return evaluate_reranking(load_ranker(config.ranker, device=config.device), data, found, **shared)
    model = load_model(config.model, device=config.device)
    index = None if config.index is None else Index.load(config.index, index_tower(model))
    return evaluate_retrieval(model, data, index=index, **shared)


def _evaluate(
    find: Callable[[], list[Run]],
    data: RetrievalData,
    subnets: Sequence[Subnet],
    metrics: Sequence[str],
    output_dir: str | Path | None,
    overwrite: bool,
    permutations: int,
    seed: int,
    first_stage: Run | None = None,
) -> RetrievalResults:
    """Score each size, and compare it with the full one."""
    names = ([] if first_stage is None else [FIRST_STAGE]) + [size_name(subnet) for subnet in subnets]
    files = {name: f"run.{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-')}.txt.gz" for name in names}
    if not subnets or len(set(files.values())) < len(names):
        raise UserError(f"subnets: needed are sizes, each once; got {', '.join(names) or 'none'}")
    if output_dir is not None:
        check_output(output_dir, overwrite=overwrite)
    score_run({}, data, metrics)  # before the work: the data may lack what a metric needs
    runs = dict(zip(names, [first_stage] * (first_stage is not None) + find()))
    scores = {name: score_run(found, data, metrics) for name, found in runs.items()}
    full, sizes = scores.get(FULL), []
    for name in names:
        values = scores[name].per_query
        compared = metrics if full is not None and name != FULL else ()
        tests = {
            metric: compare(values[metric], full.per_query[metric], permutations=permutations, seed=seed) for metric in compared
        }
        sizes.append(SizeResult(name, scores[name], tests))
    results = RetrievalResults(data.name, tuple(metrics), len(data.evaluated()), sizes)
    if output_dir is not None:
        with filled(output_dir, overwrite=overwrite) as folder:
            for name, found in runs.items():
                write_run(found, folder / files[name], tag=files[name].removeprefix("run.").removesuffix(".txt.gz"))
            (folder / "results.json").write_text(json.dumps(results.to_dict(), indent=2) + "\n", encoding="utf-8")
    return results


def _check_dimensions(model: SentenceTransformer, subnets: Sequence[Subnet], encoded: Sequence[np.ndarray]) -> None:
    needed = model.encode_document([""], convert_to_numpy=True, **size_argument(model, None)).shape[1]
    for subnet, vectors in zip(subnets, encoded):
        if vectors.shape[1] != needed:
            found = f"{vectors.shape[1]} numbers, the documents' have {needed}"
            raise UserError(f"subnets: {size_name(subnet)!r} gives vectors of {found}")
