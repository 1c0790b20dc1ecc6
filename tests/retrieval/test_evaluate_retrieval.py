"""Sizes that search and rerank: runs, metrics, tests against the full size, and what is written."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", minversion="6")
pytest.importorskip("ir_measures")

from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from tiny_search import data, make_elastic, make_model, make_ranker, model, plain, ranker  # noqa: F401

from hf_elastic import ElasticModel
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.data import RetrievalData, load_retrieval
from hf_elastic.retrieval.evaluate import evaluate_reranking, evaluate_retrieval, run
from hf_elastic.retrieval.evaluate_config import EvaluateRetrievalConfig
from hf_elastic.retrieval.metrics import compare, read_run, score_run

pytestmark = pytest.mark.one_lane

METRICS = ["nDCG@10", "R@10", "AP"]


def write_folder(data, folder):  # noqa: F811
    """The collection in the layout of BEIR."""
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": document.id, "title": "", "text": document.text}) for document in data.corpus]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"_id": name, "text": text}) for name, text in data.queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(rows))
    rows = [f"{query}\t{name}\t{score}\n" for query, found in data.qrels.items() for name, score in found.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def test_sizes_search(data, model, tmp_path):  # noqa: F811
    subnets = [None, "small", "tiny"]
    results = evaluate_retrieval(model, data, subnets=subnets, metrics=METRICS, k=20, batch_size=5, output_dir=tmp_path / "out")
    assert [size.name for size in results.sizes] == ["full", "small", "tiny"] and results.queries == 12
    ids, documents = [document.id for document in data.corpus], model.encode_document([document.text for document in data.corpus])
    for subnet, name in zip(subnets, ("full", "small", "tiny")):
        vectors = model.encode_query(list(data.evaluated().values()), subnet=subnet)
        expected = dict(zip(data.evaluated(), vectors @ documents.T))
        written = read_run(tmp_path / "out" / f"run.{name}.txt.gz")
        for query, row in expected.items():
            assert list(written[query].values()) == pytest.approx(sorted(row, reverse=True)[:20], abs=1e-5)
            assert [row[ids.index(document)] for document in written[query]] == pytest.approx(
                list(written[query].values()), abs=1e-5
            )
        assert results[subnet].scores == score_run(written, data, METRICS)
    assert results[None].differences == {} and set(results["tiny"].differences) == set(METRICS)
    values, full = results["tiny"].scores.per_query["nDCG@10"], results[None].scores.per_query["nDCG@10"]
    assert results["tiny"].differences["nDCG@10"] == compare(values, full) and values != full
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved == results.to_dict() and saved["sizes"]["tiny"]["metrics"] == results["tiny"].scores.means
    console = Console(width=120)
    with console.capture() as captured:
        console.print(results.table())
    printed = captured.get()
    assert (
        f"{results[None].scores.means['AP']:.4f}" in printed and f"p={results['small'].differences['AP'].p_value:.3g}" in printed
    )


def test_the_values_of_their_evaluator(data, plain):  # noqa: F811
    corpus = {document.id: document.text for document in data.corpus}
    relevant = {query: {name for name, score in found.items() if score} for query, found in data.qrels.items()}
    theirs = InformationRetrievalEvaluator(data.evaluated(), corpus, relevant, query_prompt_name="query")(plain)
    binary = RetrievalData(data.corpus, data.queries, {q: dict.fromkeys(found, 1) for q, found in relevant.items()})
    ours = evaluate_retrieval(plain, binary, metrics=["nDCG@10", "RR@10", "R@10", "AP@100"], k=100)[None].scores.means
    names = {"nDCG@10": "ndcg@10", "RR@10": "mrr@10", "R@10": "recall@10", "AP@100": "map@100"}
    for name, value in ours.items():
        assert value == pytest.approx(theirs[f"cosine_{names[name]}"], abs=1e-6)


def test_none_is_the_full_size_whatever_is_selected(data, model, ranker):  # noqa: F811
    first = {query: {f"d{place}": -float(place) for place in range(5)} for query in data.qrels}
    expected = evaluate_retrieval(model, data, metrics=METRICS), evaluate_reranking(ranker, data, first, k=10, metrics=METRICS)
    for sized in (model, ranker):
        sized[0].model.select("tiny")
    found = evaluate_retrieval(model, data, metrics=METRICS), evaluate_reranking(ranker, data, first, k=10, metrics=METRICS)
    for sized in (model, ranker):
        sized[0].model.select(None)
    assert found == expected


def test_an_index_is_searched(data, model):  # noqa: F811
    class InOrder:
        def search(self, vectors, k):
            assert vectors.shape == (12, 32) and vectors.dtype == np.float32
            return [[f"d{place}" for place in range(k)]] * 12, [np.arange(k, 0, -1.0)] * 12

    results = evaluate_retrieval(model, data, metrics=["R@3"], k=3, index=InOrder())
    expected = score_run({query: {"d0": 3.0, "d1": 2.0, "d2": 1.0} for query in data.qrels}, data, ["R@3"])
    assert results[None].scores == expected


def test_sizes_rerank(data, ranker, tmp_path):  # noqa: F811
    first = {query: {f"d{place}": -float(place) for place in range(30)} for query in [*data.qrels, "unjudged"]}
    results = evaluate_reranking(ranker, data, first, k=10, subnets=[None, "small"], metrics=METRICS, output_dir=tmp_path / "out")
    assert [size.name for size in results.sizes] == ["first stage", "full", "small"]
    texts = {document.id: document.text for document in data.corpus}
    for subnet, name in ((None, "full"), ("small", "small")):
        written = read_run(tmp_path / "out" / f"run.{name}.txt.gz")
        assert set(written) == set(data.qrels)
        for query, found in written.items():
            names = [f"d{place}" for place in range(10)]
            scores = ranker.predict([(data.queries[query], texts[name]) for name in names], subnet=subnet)
            assert sorted(found) == sorted(names)
            assert [found[name] for name in names] == pytest.approx(scores.tolist(), abs=1e-5)
        assert results[subnet].scores == score_run(written, data, METRICS)
    stage = results.sizes[0]
    assert stage.scores.per_query == score_run(read_run(tmp_path / "out" / "run.first-stage.txt.gz"), data, METRICS).per_query
    assert stage.scores.without_judgements == 1
    assert stage.differences["AP"].difference == pytest.approx(stage.scores.means["AP"] - results[None].scores.means["AP"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subnets": ["small"], "metrics": ["nDCG@10"]}, "'small': a plain SentenceTransformer has no sizes"),
        ({"subnets": []}, "needed are sizes, each once; got none"),
        ({"subnets": [None, None]}, "each once; got full, full"),
        ({"subnets": ["a b", "a-b"]}, "each once; got a b, a-b"),
        ({"metrics": ["best"]}, "'best' is none of ir_measures"),
        ({"metrics": ["Answer@5"]}, "Answer@5: tiny has no answers"),
        ({"metrics": ["R@30"]}, "R@30 looks at 30 documents"),
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
    ],
)
def test_what_is_refused(data, plain, tmp_path, options, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        evaluate_retrieval(plain, data, **{"k": 20, "metrics": METRICS, "output_dir": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_mistakes_are_told_before_the_corpus_is_encoded(data, model, tmp_path):  # noqa: F811
    def unreadable():
        raise AssertionError("the corpus is read")
        yield

    class Corpus:
        def __iter__(self):
            return unreadable()

    unread = RetrievalData(Corpus(), data.queries, data.qrels, name="tiny")
    with pytest.raises(UserError, match="unknown subnet 'medium'"):
        evaluate_retrieval(model, unread, subnets=[None, "medium"])
    with pytest.raises(UserError, match="Answer@5: tiny has no answers"):
        evaluate_retrieval(model, unread, metrics=["Answer@5"])
    towers = {"query": [*make_model(tmp_path), Dense(32, 8)], "document": list(make_model(tmp_path))}
    uneven = SentenceTransformer(modules=[Router(towers)], device="cpu")
    with pytest.raises(UserError, match="'full' gives vectors of 8 numbers, the documents' have 32"):
        evaluate_retrieval(uneven, unread)


def test_two_towers(data, tmp_path):  # noqa: F811
    query, document = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    with torch.no_grad():
        for parameter in document.parameters():
            parameter.mul_(1.1)
    routed = SentenceTransformer(modules=[Router({"query": list(query), "document": list(document)})], device="cpu")
    results = evaluate_retrieval(routed, data, metrics=["AP"], k=10)
    scores = query.encode(list(data.evaluated().values())) @ document.encode([one.text for one in data.corpus]).T
    run = {name: {f"d{place}": float(row[place]) for place in np.argsort(-row)[:10]} for name, row in zip(data.qrels, scores)}
    assert results[None].scores.means["AP"] == pytest.approx(score_run(run, data, ["AP"]).means["AP"])


def test_what_a_ranker_refuses(data, ranker, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="has 3 labels"):
        evaluate_reranking(make_ranker(tmp_path, labels=3), data, {"q0": {"d0": 1.0}})
    with pytest.raises(UserError, match="'small': a plain CrossEncoder has no sizes"):
        evaluate_reranking(make_ranker(tmp_path / "b"), data, {"q0": {"d0": 1.0}}, subnets=["small"])
    with pytest.raises(UserError, match=r"run: 1 documents are not in tiny \(x\)"):
        evaluate_reranking(ranker, data, {"q0": {"d0": 1.0, "x": 0.0}})
    with pytest.raises(UserError, match="run: has no documents for a query of tiny"):
        evaluate_reranking(ranker, data, {"other": {"d0": 1.0}})


def test_options(data, tmp_path):  # noqa: F811
    folder, out = write_folder(data, tmp_path / "data"), tmp_path / "out"
    stock = make_model(tmp_path)
    shared = {"data": str(folder), "k": 10, "metrics": ["nDCG@10 R@5"], "device": "cpu"}
    results = run(EvaluateRetrievalConfig(model=str(tmp_path / "sentence"), output_dir=str(out), **shared))
    expected = evaluate_retrieval(stock, load_retrieval(folder), k=10, metrics=["nDCG@10", "R@5"])
    assert results.to_dict() == {**expected.to_dict(), "data": "data"}
    make_ranker(tmp_path)
    options = {"ranker": str(tmp_path / "cross"), "run": str(out / "run.full.txt.gz")}
    reranked = run(EvaluateRetrievalConfig(**options, **shared))
    assert reranked.sizes[0].scores == results[None].scores
    with pytest.raises(UserError, match="is not empty; add --overwrite"):
        run(EvaluateRetrievalConfig(model=str(tmp_path / "sentence"), output_dir=str(out), **shared))
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what hf-elastic has not written there \(mine.txt\)"):
        run(EvaluateRetrievalConfig(model=str(tmp_path / "sentence"), output_dir=str(out), overwrite=True, **shared))
    (out / "mine.txt").unlink()
    sized = {"model": "any", "subnets": ["tiny"], "output_dir": str(out), "overwrite": True}
    results = run(EvaluateRetrievalConfig(**sized, **shared), load_model=lambda name, device: make_elastic(stock, ElasticModel))
    assert [size.name for size in results.sizes] == ["full", "tiny"]
    assert sorted(path.name for path in out.glob("r*")) == ["results.json", "run.full.txt.gz", "run.tiny.txt.gz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model, ranker: give one of them"),
        ({"model": "m", "ranker": "r", "run": "x"}, "model, ranker: give one of them"),
        ({"ranker": "r"}, "a ranker needs a run file"),
        ({"model": "m", "run": "x"}, "a model searches itself"),
        ({"model": "m", "k": 0}, "k must be an integer of at least 1"),
        ({"model": "m", "seed": -1}, "seed must be an integer of at least 0"),
        ({"model": "m", "subnets": ["{"]}, "subnets: '{' is neither"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        EvaluateRetrievalConfig(data="d", **options)
