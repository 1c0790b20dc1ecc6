"""An index takes queries of all sizes of an asymmetric model, and of the size that filled it of a symmetric one."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentences import make_denser, save_sentence_transformer, texts

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.build import build_index
from hf_elastic.retrieval.data import Document, RetrievalData
from hf_elastic.retrieval.evaluate import evaluate_retrieval
from hf_elastic.retrieval.export import export_denser
from hf_elastic.retrieval.fingerprint import fingerprint_of
from hf_elastic.retrieval.index import Index
from hf_elastic_cli import main

pytestmark = pytest.mark.one_lane

DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(texts(40, 3))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sentence_transformer(tmp_path_factory.mktemp("stock"))


def test_the_document_tower_is_the_model_that_was_given(folder, tmp_path):
    denser, stock = make_denser(folder)
    symmetric, _ = make_denser(folder, "symmetric", importance="none")
    expected = fingerprint_of(stock)
    for model in (denser, denser.tower("document"), symmetric, symmetric.tower("document")):
        assert fingerprint_of(model).digest == expected.digest
    export_denser(denser, "small", tmp_path / "out")
    assert fingerprint_of(SentenceTransformer(str(tmp_path / "out"), device="cpu")).digest == expected.digest
    symmetric.elastic.select("small")
    small = fingerprint_of(symmetric).digest
    assert small != expected.digest and small == fingerprint_of(symmetric.tower("document", "small")).digest


def test_one_index_for_all_sizes(folder, tmp_path):
    denser, stock = make_denser(folder)
    build_index(stock, DOCUMENTS, tmp_path / "index")
    index = Index.load(tmp_path / "index", denser)
    documents = stock.encode_document([document.text for document in DOCUMENTS])
    for size in (None, "small", "tiny"):
        queries = denser.encode_query(texts(4), subnet=size)
        ids, scores = index.search(queries, 5)
        assert ids == [[f"d{row}" for row in np.argsort(-line, kind="stable")[:5]] for line in queries @ documents.T]
        assert np.allclose(scores, -np.sort(-(queries @ documents.T))[:, :5], atol=1e-5)


def test_an_index_of_the_full_size_refuses_the_symmetric_small_tower(folder, tmp_path):
    symmetric, stock = make_denser(folder, "symmetric", importance="none")
    build_index(stock, DOCUMENTS, tmp_path / "index")
    Index.load(tmp_path / "index", symmetric)
    with pytest.raises(UserError, match="another one") as error:
        Index.load(tmp_path / "index", symmetric.tower("document", "small"))
    assert f"{symmetric.elastic.name_or_path} (small)" in str(error.value)


@pytest.mark.parametrize("mode", ["asymmetric", "symmetric"])
def test_the_commands_at_a_size(mode, folder, tmp_path, capsys):
    denser, _ = make_denser(folder, mode)
    denser.save_pretrained(str(tmp_path / "denser"))
    rows = [json.dumps({"_id": document.id, "text": document.text}) for document in DOCUMENTS]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    index = ["retrieve", "index", "--model", str(tmp_path / "denser"), "--corpus", str(tmp_path / "corpus.jsonl"), "--output_dir"]
    query = ["retrieve", "query", "--model", str(tmp_path / "denser"), "--query", DOCUMENTS[7].text, "--k", "3", "--index"]
    assert main([*index, str(tmp_path / "full")]) == 0
    assert main([*query, str(tmp_path / "full")]) == 0
    assert main([*query, str(tmp_path / "full"), "--subnet", "small"]) == (0 if mode == "asymmetric" else 2)
    assert main([*index, str(tmp_path / "small"), "--subnet", "small"]) == (2 if mode == "asymmetric" else 0)
    error = capsys.readouterr().err
    assert "another one" in error if mode == "symmetric" else "'small' for documents" in error
    if mode == "symmetric":
        output = tmp_path / "run.txt"
        assert main([*query, str(tmp_path / "small"), "--subnet", "small", "--output", str(output)]) == 0
        queries = denser.encode_query([DOCUMENTS[7].text], subnet="small")
        documents = denser.encode_document([document.text for document in DOCUMENTS], subnet="small")
        best = int((queries @ documents.T).argmax())
        assert output.read_text().split()[2] == f"d{best}"


def test_evaluation_of_each_mode(folder, tmp_path):
    """In the symmetric mode a size is evaluated on documents of its own; in the other one an index stands for the corpus."""
    data = RetrievalData(DOCUMENTS, {"q": DOCUMENTS[3].text, "r": texts(1)[0]}, {"q": {"d3": 1}, "r": {"d5": 1}}, {}, "mine")
    asymmetric, symmetric = (make_denser(folder, mode)[0] for mode in ("asymmetric", "symmetric"))
    build_index(asymmetric, DOCUMENTS, tmp_path / "index")
    index = Index.load(tmp_path / "index", asymmetric)
    options = {"subnets": [None, "small"], "k": 10, "metrics": ["RR@10"]}
    encoded, indexed = (evaluate_retrieval(asymmetric, data, index=one, **options) for one in (None, index))
    assert [size.scores.means for size in encoded.sizes] == [size.scores.means for size in indexed.sizes]
    small = evaluate_retrieval(symmetric, data, **options).sizes[1]
    tower = evaluate_retrieval(symmetric.tower("document", "small"), data, k=10, metrics=["RR@10"]).sizes[0]
    assert small.scores.per_query == tower.scores.per_query
    with pytest.raises(UserError, match="want one of their own size"):
        evaluate_retrieval(symmetric, data, index=index, **options)


def test_an_index_of_a_narrow_size(folder, tmp_path):
    space = {"num_hidden_layers": [2, 4], "hidden_size": [16, 32], "num_attention_heads": [2, 4]}
    narrow = {"hidden_size": 16, "num_attention_heads": 2}
    symmetric, _ = make_denser(folder, "symmetric", space=space, subnets={"narrow": narrow})
    tower = symmetric.tower("document", "narrow")
    build_index(tower, DOCUMENTS, tmp_path / "index")
    index = Index.load(tmp_path / "index", tower)
    assert index.dimension == 16
    ids, _ = index.search(symmetric.encode_query([DOCUMENTS[4].text], subnet="narrow", prompt=""), 1)
    assert ids == [["d4"]]
    export_denser(symmetric, "narrow", tmp_path / "out")
    Index.load(tmp_path / "index", SentenceTransformer(str(tmp_path / "out"), device="cpu"))
