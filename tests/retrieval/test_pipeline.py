"""Two stages: an index finds candidates, and a ranker reorders them."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", minversion="6")
pytest.importorskip("faiss")

import tiny_search
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentences import make_denser, make_ranker, save_cross_encoder, save_sentence_transformer, texts

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval import CorpusTexts, RetrievalPipeline, export_denser, load_graph
from hf_elastic.retrieval.data import Document, read_corpus
from hf_elastic.retrieval.index import Index

pytestmark = pytest.mark.one_lane

QUERIES = texts(6, 1)
DOCUMENTS = {f"d{place}": text for place, text in enumerate(dict.fromkeys(texts(60)))}
SETTINGS = list(product(("full", "small", "tiny"), (0, 10, 25), ("full", "small", "tiny")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_sentence_transformer(tmp_path_factory.mktemp("dense")), save_cross_encoder(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="module")
def denser(folders):
    return make_denser(folders[0])[0]


@pytest.fixture(scope="module")
def ranker(folders):
    return make_ranker(folders[1])[0]


@pytest.fixture(scope="module")
def index(denser):
    return filled(denser)


def filled(model, documents=DOCUMENTS):
    index = Index.create(model)
    index.add(list(documents), list(documents.values()))
    return index


@pytest.fixture(scope="module")
def pipeline(denser, index, ranker):
    return RetrievalPipeline(denser, index, DOCUMENTS, ranker, k=25)


def by_hand(denser, ranker, queries, top, k, size, ranker_size):
    """Ids and scores of each query: all vectors compared, and the first k scored by a ranker of just that size."""
    scores = denser.encode_query(queries, subnet=size) @ denser.encode_document(list(DOCUMENTS.values())).T
    for query, row in zip(queries, scores):
        order = np.argsort(-row)[: k or top]
        if k:
            row = ranker.tower(ranker_size).predict([(query, list(DOCUMENTS.values())[place]) for place in order])
            ranked = np.argsort(-row, kind="stable")
            order, row = order[ranked], row[ranked]
        else:
            row = row[order]
        yield [f"d{place}" for place in order[:top]], row[:top]


def check(found, expected, top=10):
    for hits, (ids, scores) in zip(found, expected, strict=True):
        assert [hit.id for hit in hits] == ids and len(ids) == top
        assert [hit.score for hit in hits] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [hit.text for hit in hits] == [DOCUMENTS[hit.id] for hit in hits]


@pytest.mark.parametrize(("size", "k", "ranker_size"), [one for one in SETTINGS if one[1]])
def test_both_stages_by_hand(size, k, ranker_size, pipeline, denser, ranker):
    expected = list(by_hand(denser, ranker, QUERIES, 10, k, size, ranker_size))
    check(pipeline.search(QUERIES, k=k, denser_subnet=size, ranker_subnet=ranker_size), expected)
    own = RetrievalPipeline(denser, pipeline.index, DOCUMENTS, ranker, k, size, ranker_size, batch_size=3)
    check(own.search(QUERIES), expected)


def test_sizes_by_their_axes(pipeline):
    found = pipeline.search(QUERIES, denser_subnet={"num_hidden_layers": 1}, ranker_subnet={"num_hidden_layers": 2})
    assert found == pipeline.search(QUERIES, denser_subnet={"num_hidden_layers": 1}, ranker_subnet="small")


def test_one_stage(pipeline, denser, index):
    alone = RetrievalPipeline(denser, index, DOCUMENTS, denser_subnet="small")
    expected = list(by_hand(denser, None, QUERIES, 4, 0, "small", None))
    check(alone.search(QUERIES, 4), expected, 4)
    assert alone.search(QUERIES, 4) == pipeline.search(QUERIES, 4, k=0, denser_subnet="small")


def test_what_is_selected_in_the_models_does_not_matter(pipeline, ranker):
    expected = pipeline.search(QUERIES)
    with ranker.selected("tiny"):
        pipeline.denser.elastic.select("tiny")
        try:
            assert pipeline.search(QUERIES) == expected
            assert ranker.elastic.config.subnet == "tiny"
        finally:
            pipeline.denser.elastic.select(None)


def test_threads_each_with_sizes_of_their_own(pipeline):
    settings = [{"denser_subnet": size, "k": k, **({"ranker_subnet": other} if k else {})} for size, k, other in SETTINGS]
    expected = [pipeline.search(QUERIES, **setting) for setting in settings]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [pipeline.search(QUERIES, **setting) for setting in settings], range(8)):
            for one, other in zip(found, expected):
                assert [[hit.id for hit in hits] for hits in one] == [[hit.id for hit in hits] for hits in other]
                assert [[hit.score for hit in hits] for hits in one] == [
                    pytest.approx([hit.score for hit in hits], abs=1e-5) for hits in other
                ]


def test_few_documents_and_empty_texts(denser, ranker):
    few = {"a": "word1 word2", "b": "", "c": "word3"}
    pipeline = RetrievalPipeline(denser, filled(denser, few), few, ranker, k=50)
    for query in ("word1", ""):
        (found,) = pipeline.search([query], 20)
        scores = ranker.predict([(query, text) for text in few.values()])
        assert [hit.id for hit in found] == [list(few)[place] for place in np.argsort(-scores)]
        assert len(pipeline.search([query], 2)[0]) == 2
    assert pipeline.search([]) == []
    assert RetrievalPipeline(denser, Index.create(denser), {}, ranker).search(QUERIES) == [[]] * len(QUERIES)


def test_equal_scores_keep_the_order_of_the_first_stage(denser, folders):
    ranker = CrossEncoder(folders[1], device="cpu")
    ranker.activation_fn = torch.nn.Hardshrink(1e9)  # all scores are 0
    pipeline = RetrievalPipeline(denser, filled(denser), DOCUMENTS, ranker, k=30)
    found, alone = pipeline.search(QUERIES), pipeline.search(QUERIES, k=0)
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in alone]
    assert {hit.score for hits in found for hit in hits} == {0.0}


def test_plain_models_and_a_saved_index(folders, tmp_path):
    denser, ranker = SentenceTransformer(folders[0], device="cpu"), CrossEncoder(folders[1], device="cpu")
    filled(denser).save(tmp_path / "index")
    pipeline = RetrievalPipeline(denser, Index.load(tmp_path / "index", denser), DOCUMENTS, ranker, k=25)
    sized = make_denser(folders[0])[0], make_ranker(folders[1], importance="none")[0]
    elastic = RetrievalPipeline(sized[0], pipeline.index, DOCUMENTS, sized[1], k=25)
    assert pipeline.search(QUERIES) == elastic.search(QUERIES)
    with pytest.raises(UserError, match="denser_subnet: 'small': a plain SentenceTransformer has no sizes"):
        pipeline.search(QUERIES, denser_subnet="small")
    with pytest.raises(UserError, match="ranker_subnet: 'small': a plain CrossEncoder has no sizes"):
        pipeline.search(QUERIES, ranker_subnet="small")


def test_an_index_of_another_model(folders, tmp_path, index):
    other = SentenceTransformer(save_sentence_transformer(tmp_path, num_hidden_layers=2), device="cpu")
    with pytest.raises(UserError, match="the index belongs to the document tower of"):
        RetrievalPipeline(other, index, DOCUMENTS)


def test_a_symmetric_size_wants_its_own_index(folders):
    denser, _ = make_denser(folders[0], mode="symmetric")
    full = RetrievalPipeline(denser, filled(denser.tower("document")), DOCUMENTS)
    assert full.search(QUERIES) == full.search(QUERIES, denser_subnet="full")
    with pytest.raises(UserError, match="the index belongs to the document tower of"):
        full.search(QUERIES, denser_subnet="small")
    small = RetrievalPipeline(denser, filled(denser.tower("document", "small")), DOCUMENTS, denser_subnet="small")
    documents = denser.encode_document(list(DOCUMENTS.values()), subnet="small")
    for hits, row in zip(small.search(QUERIES), denser.encode_query(QUERIES, subnet="small") @ documents.T):
        assert [hit.id for hit in hits] == [f"d{place}" for place in np.argsort(-row)[:10]]
    with pytest.raises(UserError, match="the index belongs to the document tower of"):
        small.search(QUERIES, denser_subnet="full")
    with pytest.raises(UserError, match="the index belongs to the document tower of"):
        RetrievalPipeline(denser, small.index, DOCUMENTS)


def test_queries_on_a_graph(folders, tmp_path, denser, index, ranker, pipeline):
    pytest.importorskip("onnxruntime")
    export_denser(denser, "small", tmp_path / "small", ["onnx"])
    fast = RetrievalPipeline(load_graph(tmp_path / "small" / "onnx"), index, DOCUMENTS, ranker, k=25)
    check(fast.search(QUERIES), list(by_hand(denser, ranker, QUERIES, 10, 25, "small", "full")))


def test_a_document_without_text_in_the_documents(denser, ranker, index):
    known = {name: text for name, text in DOCUMENTS.items() if name != "d7"}
    query = [DOCUMENTS["d7"]]
    for pipeline in (RetrievalPipeline(denser, index, known), RetrievalPipeline(denser, index, known, ranker)):
        with pytest.raises(UserError, match="documents: there is no text for 'd7', which is in the index"):
            pipeline.search(query)


REFUSED = {
    "one text": ({"queries": "word1"}, "queries: needed is a list of texts, got the text 'word1'"),
    "no hits": ({"top": 0}, "top must be an integer of at least 1"),
    "below zero": ({"k": -1}, "k must be an integer of at least 0"),
    "few candidates": ({"k": 5}, "top: 10 hits cannot be of k=5 candidates"),
    "no such size": ({"denser_subnet": "huge"}, "unknown subnet 'huge'"),
    "no such size of the ranker": ({"ranker_subnet": "huge"}, "unknown subnet 'huge'"),
    "a size of no ranker": ({"k": 0, "ranker_subnet": "tiny"}, "ranker_subnet: 'tiny', and no ranker is asked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_search_refuses(name, pipeline):
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        pipeline.search(**{"queries": QUERIES, **options})


def test_what_a_pipeline_refuses(denser, index, ranker, tmp_path):
    with pytest.raises(UserError, match="ranker_subnet: 'tiny', and there is no ranker"):
        RetrievalPipeline(denser, index, DOCUMENTS, ranker_subnet="tiny")
    with pytest.raises(UserError, match="k must be an integer of at least 0, got -1"):
        RetrievalPipeline(denser, index, DOCUMENTS, ranker, -1)
    with pytest.raises(UserError, match="batch_size must be an integer of at least 1, got 0"):
        RetrievalPipeline(denser, index, DOCUMENTS, batch_size=0)
    with pytest.raises(UserError, match="k: 20 candidates for a ranker, and the pipeline has none"):
        RetrievalPipeline(denser, index, DOCUMENTS).search(QUERIES, k=20)
    three = tiny_search.make_ranker(tmp_path, labels=3)
    with pytest.raises(UserError, match="ranker: has 3 labels"):
        RetrievalPipeline(denser, index, DOCUMENTS, three)


def test_texts_of_a_corpus_on_the_disk(tmp_path, denser, ranker, index, pipeline):
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in DOCUMENTS.items()]
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    stored = CorpusTexts(read_corpus(tmp_path / "corpus.jsonl.gz"))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stored.__getitem__, DOCUMENTS)) == list(DOCUMENTS.values())
    with pytest.raises(KeyError):
        stored["d1000"]
    assert RetrievalPipeline(denser, index, stored, ranker, k=25).search(QUERIES) == pipeline.search(QUERIES)
    with pytest.raises(UserError, match="corpus: its texts cannot be kept in a temporary file of SQLite: UNIQUE"):
        CorpusTexts([Document("a", "word1"), Document("a", "word2")])
