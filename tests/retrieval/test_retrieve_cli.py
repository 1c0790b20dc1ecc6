"""`hf-elastic retrieve index` and `retrieve query`."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", minversion="6")
from index_models import ROOT, load, save_model, texts, write_corpus
from sentence_transformers import CrossEncoder

import hf_elastic_cli
from hf_elastic.cli.main import main

pytestmark = pytest.mark.one_lane


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a collection, and its index."""
    folder = tmp_path_factory.mktemp("retrieve")
    save_model(folder)
    (folder / "data").mkdir()
    write_corpus(folder / "data" / "corpus.jsonl", 80)
    arguments = ["--model", folder / "model", "--corpus", folder / "data", "--output_dir", folder / "index", "--kind", "hnsw"]
    assert main(["retrieve", "index", *map(str, arguments)]) == 0
    return folder


def query(folder, *arguments):
    return main(["retrieve", "query", "--model", str(folder / "model"), "--index", str(folder / "index"), *map(str, arguments)])


def test_a_table(folder, capsys):
    assert query(folder, "--query", texts(80)[30], "--k", "3") == 0
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if "doc30" in line)
    assert "1.0000" in first and sum("doc" in line and "0." in line for line in printed.splitlines()) == 2


def test_a_run_file(folder, tmp_path, capsys):
    wanted = {f"q {i}".replace(" ", "-"): texts(80)[i] for i in range(10, 20)}
    (tmp_path / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in wanted.items()))
    assert query(folder, "--queries", tmp_path / "queries.tsv", "--k", 4, "--output", tmp_path / "run.txt") == 0
    assert "and 5 more queries" in capsys.readouterr().out
    rows = [line.split() for line in (tmp_path / "run.txt").read_text().splitlines()]
    assert len(rows) == 40 and {row[0] for row in rows} == set(wanted) and {row[1] for row in rows} == {"Q0"}
    assert [row[3] for row in rows] == ["1", "2", "3", "4"] * 10
    model = load(folder / "model")
    similarity = model.similarity(model.encode_query(list(wanted.values())), model.encode_document(texts(80))).numpy()
    for line, expected in zip(np.array(rows)[:, 4].astype(float).reshape(10, 4), -np.sort(-similarity, axis=1)[:, :4]):
        assert np.abs(line - expected).max() < 1e-5
    before = (tmp_path / "run.txt").read_text()
    assert query(folder, "--queries", tmp_path / "queries.tsv", "--output", tmp_path / "run.txt") == 2
    assert "is there already; add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "run.txt").read_text() == before
    assert query(folder, "--queries", tmp_path / "queries.tsv", "--output", tmp_path / "queries.tsv", "--overwrite") == 2
    assert "is queries" in capsys.readouterr().err


def test_a_recipe_and_an_empty_query(folder, tmp_path, capsys):
    recipe = {"model": str(folder / "model"), "index": str(folder / "index"), "query": "", "k": 1}
    (tmp_path / "query.yaml").write_text(json.dumps(recipe))
    assert main(["retrieve", "query", str(tmp_path / "query.yaml")]) == 0
    assert "doc3 " in capsys.readouterr().out  # the document without text


def test_what_is_printed_of_an_index(folder, tmp_path, capsys):
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "data" / "corpus.jsonl").read_bytes()))
    command = ["retrieve", "index", "--model", str(folder / "model"), "--corpus", str(tmp_path / "corpus.jsonl.gz")]
    assert main([*command, "--output_dir", str(tmp_path / "index")]) == 0
    printed = capsys.readouterr().out
    assert "80 documents, 80 encoded now at" in printed and "1 empty" in printed and f"written: {tmp_path / 'index'}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl.gz", "index"]
    assert main([*command, "--output_dir", str(tmp_path / "index")]) == 2
    assert "is not empty; add --overwrite" in capsys.readouterr().err
    assert main([*command, "--output_dir", str(tmp_path / "index"), "--overwrite", "--dtype", "float16"]) == 0


@pytest.fixture
def inputs(folder, tmp_path):
    """Files with a fault each."""
    rows = [{"_id": f"doc{i}", "text": "word1"} for i in range(3)]
    lines = [json.dumps(row).encode() for row in rows]
    (tmp_path / "latin.jsonl").write_bytes(b"\n".join([*lines, b'{"_id": "x", "text": "caf\xe9"}']))
    (tmp_path / "twice.jsonl").write_bytes(b"\n".join([*lines, lines[1]]))
    (tmp_path / "broken.jsonl").write_bytes(b"\n".join([lines[0], b"{"]))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_text(json.dumps({"_id": "a b", "text": "word1"}))
    (tmp_path / "empty.tsv").write_text("")
    save_model(tmp_path / "other", seed=1)
    shutil.copytree(folder / "model", tmp_path / "damaged")
    os.truncate(tmp_path / "damaged" / "model.safetensors", 1000)
    CrossEncoder(str(folder / "model"), num_labels=1, device="cpu").save_pretrained(str(tmp_path / "ranker"))
    (tmp_path / "run.txt").write_text("a Q0 doc1 1 0.5 mine\n")
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "corpus.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "judged" / "queries.tsv").write_text("a\tword1\n")
    (tmp_path / "judged" / "qrels.tsv").write_text("a\tdoc1\t1\n")
    return {"f": folder, "t": tmp_path}


INDEX = "--model {f}/model --corpus {f}/data --output_dir {t}/out"
QUERY = "--model {f}/model --index {f}/index --query word1"
REFUSED = {
    "another encoding": (f"index {INDEX} --corpus {{t}}/latin.jsonl", "latin.jsonl, line 4: is not UTF-8"),
    "an id twice": (f"index {INDEX} --corpus {{t}}/twice.jsonl", "twice.jsonl, line 4: "),
    "no JSON": (f"index {INDEX} --corpus {{t}}/broken.jsonl", "broken.jsonl, line 2: is no "),
    "no documents": (f"index {INDEX} --corpus {{t}}/empty.jsonl", "there is no document"),
    "no file": (f"index {INDEX} --corpus {{t}}/nowhere.jsonl", "nowhere.jsonl"),
    "no model": (f"index {INDEX} --model {{t}}", "model: '{t}' cannot be loaded"),
    "damaged": (f"index {INDEX} --model {{t}}/damaged", "model: '{t}/damaged' cannot be loaded"),
    "no ranker": (
        "evaluate --ranker {f}/model --run {t}/run.txt --data {t}/judged",
        "ranker: {f}/model is a SentenceTransformer, which has no head that scores a pair; needed is a CrossEncoder",
    ),
    "a ranker": (f"index {INDEX} --model {{t}}/ranker", "model: {t}/ranker is a CrossEncoder, which scores pairs"),
    "no kind": (f"index {INDEX} --kind tree", "kind: 'tree' is unknown; known: flat, hnsw, ivfpq, milvus"),
    "no size": (f"index {INDEX} --shard_size 0", "shard_size must be an integer of at least 1"),
    "no type": (f"index {INDEX} --dtype int8", "dtype: 'int8' is not supported"),
    "no metric": (f"index {INDEX} --metric manhattan", "metric: 'manhattan' is not supported"),
    "few": (f"index {INDEX} --kind ivfpq", "80 documents are too few to train on; nlist 1,024 needs 39,936"),
    "parts": (f"index {INDEX} --kind ivfpq --pq_m 7", "pq_m: 7 does not divide the dimension of the vectors, 32"),
    "over the model": (f"index {INDEX} --output_dir {{f}}/model --overwrite", "output_dir: {f}/model is model"),
    "over the corpus": (f"index {INDEX} --work_dir {{f}}/data", "work_dir: {f}/data is corpus"),
    "another model": (f"query {QUERY} --model {{t}}/other/model", "belongs to the document tower of"),
    "no index": (f"query {QUERY} --index {{t}}", "{t} is no index, it has no index.json"),
    "no query": ("query --model {f}/model --index {f}/index", "query, queries: give one of them"),
    "no queries": ("query --model {f}/model --index {f}/index --queries {t}/empty.tsv", "queries: there is none in"),
    "no k": (f"query {QUERY} --k 0", "k must be an integer of at least 1"),
    "no device": (f"query {QUERY} --device abacus", "device: 'abacus' cannot be used here"),
    "no such size": (f"query {QUERY} --subnet small", "subnet: "),
    "unknown": (f"query {QUERY} --wings 2", "unknown argument '--wings'; see hf-elastic retrieve query --help"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, inputs, capsys):
    line, message = REFUSED[name]
    try:
        status = main(["retrieve", *line.format(**inputs).split()])
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr().err
    errors = [one for one in printed.splitlines() if "error: " in one]
    assert status == 2 and len(errors) == 1 and message.format(**inputs) in errors[0], printed
    assert "Traceback" not in printed and not (inputs["t"] / "out").exists()


def test_ids_that_a_run_file_cannot_hold(inputs, tmp_path, capsys):
    folder = inputs["f"]
    command = ["retrieve", "index", "--model", str(folder / "model"), "--corpus", str(tmp_path / "blank.jsonl")]
    assert main([*command, "--output_dir", str(tmp_path / "blank")]) == 0
    arguments = ["--model", folder / "model", "--index", tmp_path / "blank", "--query", "word1", "--output", tmp_path / "out.txt"]
    assert main(["retrieve", "query", *map(str, arguments)]) == 2
    assert "'a b' cannot be in a run file" in capsys.readouterr().err and not (tmp_path / "out.txt").exists()


HELP = {
    "retrieve": ("usage: hf-elastic COMMAND", "retrieve query search an index"),
    "retrieve --help": ("usage: hf-elastic COMMAND", "retrieve index encode"),
    "retrieve index --help": ("usage: hf-elastic retrieve index [recipe.yaml]", "--kind TEXT"),
    "retrieve search --help": ("usage: hf-elastic retrieve search [recipe.yaml]", "--ks TEXT [TEXT ...]"),
    "retrieve query --help": ("usage: hf-elastic retrieve query [recipe.yaml]", "--queries TEXT"),
}


@pytest.mark.parametrize("line", HELP)
def test_help(line, capsys):
    assert hf_elastic_cli.main(line.split()) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(text in printed for text in HELP[line])


def test_help_imports_nothing():
    code = """
import sys, hf_elastic_cli
lines = ("retrieve", "retrieve index --help", "retrieve query --help", "retrieve fly")
codes = [hf_elastic_cli.main(line.split()) for line in lines]
sys.exit(codes != [0, 0, 0, 2] or bool({"torch", "transformers", "hf_elastic"} & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "unknown command 'retrieve fly'; known: " in done.stderr
