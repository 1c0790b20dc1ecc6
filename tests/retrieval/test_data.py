"""Files of corpora, queries, judgements and answers in the layouts of BEIR, MS MARCO, TREC and DPR."""

import gzip
import json
import os
from pathlib import Path

import pytest

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.data import Document, load_retrieval, read_answers, read_corpus, read_qrels, read_queries

pytestmark = pytest.mark.one_lane

DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
needs_data = pytest.mark.skipif(DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with retrieval/*")


def write(path: Path, text: str | bytes) -> Path:
    """A file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


BEIR = {
    "corpus.jsonl": lines({"_id": "d1", "title": "A title", "text": "and text"}, {"_id": "d2", "title": "", "text": "bare"}),
    "queries.jsonl": lines({"_id": "1", "text": "first"}, {"_id": "2", "text": "second"}, {"_id": "3", "text": "third"}),
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\td1\t2\n1\td2\t0\n",
    "qrels/dev.tsv": "query-id\tcorpus-id\tscore\n2\td2\t1\n",
}
MARCO = {
    "collection.tsv.gz": '7\tone "quoted\n8\t"a passage" in quotes\n',
    "queries.dev.small.tsv": "q7\twhich one\n",
    "queries.dev.tsv": "q7\twhich one\nq8\twhich other\n",
    "qrels.dev.small.tsv": "q7\t0\t7\t1\n",
    "qrels.dev.tsv": "q7\t0\t7\t1\nq8\t0\t8\t1\n",
}
DPR = {
    "psgs_w100.tsv.gz": 'id\ttext\ttitle\n1\t"The ""first"" text"\tOne\n2\tplain text\tTwo\n',
    "nq-dev.qa.csv": "who is it\t['The First', \"it's me\"]\nwhere\t['here']\n",
}
PAIRS = "question\tlabel\tanswer_sentence\nwho ?\t1\t`` me ''\nwho ?\t0\tyou\nwhy ?\t0\t`` me ''\n"


@pytest.fixture
def folder(tmp_path):
    def make(files: dict) -> Path:
        for name, text in files.items():
            write(tmp_path / "some" / name, text)
        return tmp_path / "some"

    return make


def test_a_folder_of_beir(folder):
    data = load_retrieval(folder(BEIR), "test")
    assert list(data.corpus) == [Document("d1", "A title and text", "A title"), Document("d2", "bare")] == list(data.corpus)
    assert data.queries == {"1": "first", "2": "second", "3": "third"} and data.qrels == {"1": {"d1": 2, "d2": 0}}
    assert data.evaluated() == {"1": "first"} and data.answers == {} and data.name == "some-test"
    assert [document.body for document in data.corpus] == ["and text", "bare"]
    assert load_retrieval(folder(BEIR), "dev").qrels == {"2": {"d2": 1}}


def test_a_folder_of_ms_marco(folder):
    small, whole = load_retrieval(folder(MARCO), "dev.small"), load_retrieval(folder(MARCO), "dev")
    assert [document.text for document in small.corpus] == ['one "quoted', '"a passage" in quotes']
    assert small.qrels == {"q7": {"7": 1}} and small.queries == {"q7": "which one"}
    assert set(whole.qrels) == set(whole.queries) == {"q7", "q8"}


def test_a_folder_of_dpr(folder):
    data = load_retrieval(folder(DPR))
    assert list(data.corpus) == [Document("1", 'One The "first" text', "One"), Document("2", "Two plain text", "Two")]
    assert data.queries == {"0": "who is it", "1": "where"} == data.evaluated()
    assert data.answers == {"0": ["The First", "it's me"], "1": ["here"]} and data.qrels == {}
    question = {"question": "who", "answers": ["One"], "positive_ctxs": [{"title": "One", "text": "x", "passage_id": "1"}]}
    write(folder({}) / "biencoder-trivia-train.json", json.dumps([question, {**question, "positive_ctxs": [{"psg_id": 2}]}]))
    data = load_retrieval(folder({}), "trivia-train")
    assert data.qrels == {"0": {"1": 1}, "1": {"2": 1}} and data.answers["1"] == ["One"]
    with pytest.raises(UserError, match=r"more than one file of queries; there are: .*trivia-train.json .*nq-dev.qa.csv"):
        load_retrieval(folder({}))


def test_a_folder_of_judged_pairs(folder):
    data = load_retrieval(folder({"dev.tsv": PAIRS, "test.tsv": PAIRS}), "dev")
    assert list(data.corpus) == [Document("d0", "`` me ''"), Document("d1", "you")]
    assert data.queries == {"q0": "who ?", "q1": "why ?"} and data.qrels == {"q0": {"d0": 1, "d1": 0}, "q1": {"d0": 0}}


def test_files_by_name(folder, tmp_path):
    other = write(tmp_path / "other.trec.gz", "3 0 d2 1\n")
    data = load_retrieval(folder(BEIR), qrels=other, answers=write(tmp_path / "a.jsonl", lines({"qid": "2", "answers": ["x"]})))
    assert data.qrels == {"3": {"d2": 1}} and data.answers == {"2": ["x"]} and set(data.evaluated()) == {"2", "3"}
    assert load_retrieval(folder(BEIR), qrels="qrels/dev.tsv").qrels == {"2": {"d2": 1}}
    with pytest.raises(FileNotFoundError, match=r"qrels: none.tsv: no such file"):
        load_retrieval(folder(BEIR), qrels="none.tsv")


def test_a_split_is_a_word_in_a_name(folder):
    files = {name: text for name, text in BEIR.items() if "/" not in name}
    files |= {"qrels.test_beir.tsv": BEIR["qrels/test.tsv"], "qrels.train_cited.tsv": BEIR["qrels/dev.tsv"]}
    assert load_retrieval(folder(files), "test").qrels == {"1": {"d1": 2, "d2": 0}}
    assert load_retrieval(folder(files), "train_cited").qrels == {"2": {"d2": 1}}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (None, r"more than one file of judgements; there are: dev.tsv \(dev\), test.tsv \(test\); choose with split"),
        ("train", r"no file of judgements of the split 'train'; there are: dev.tsv \(dev\), test.tsv"),
        ("es", "no file of judgements of the split 'es'"),
    ],
)
def test_splits_that_are_not_there(folder, split, message):
    with pytest.raises(UserError, match=message):
        load_retrieval(folder(BEIR), split)


def test_a_split_is_never_ignored(folder):
    files = {**BEIR, "answers.jsonl": lines({"qid": "1", "answers": ["x"]})}
    files = {name: text for name, text in files.items() if "/" not in name}
    assert set(load_retrieval(folder(files)).evaluated()) == {"1"}
    with pytest.raises(UserError, match=r"has no file of the split 'test', but answers.jsonl, corpus.jsonl, queries.jsonl"):
        load_retrieval(folder(files), "test")


def test_what_is_missing(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no corpus; looked for corpus.jsonl"):
        load_retrieval(folder({"queries.jsonl": BEIR["queries.jsonl"]}))
    with pytest.raises(UserError, match="no file of queries; there are: none"):
        load_retrieval(write(tmp_path / "b" / "corpus.jsonl", BEIR["corpus.jsonl"]).parent)
    with pytest.raises(UserError, match="has neither judgements"):
        load_retrieval(folder({"corpus.jsonl": BEIR["corpus.jsonl"]}))
    with pytest.raises(UserError, match="is a file; give the folder"):
        load_retrieval(folder({}) / "corpus.jsonl")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_retrieval(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a data set that the Hub gives"):
        load_retrieval("nobody/has-this")
    write(folder({}) / "collection.tsv", "1\tx\n")
    with pytest.raises(UserError, match=r"several corpora \(corpus.jsonl, collection.tsv\)"):
        load_retrieval(folder({}))


def test_unknown_ids_are_refused_or_left_out(folder, caplog):
    unknown = "query-id\tcorpus-id\tscore\n1\td1\t1\n1\td9\t1\n2\td8\t1\n9\td1\t1\n"
    files = {**BEIR, "qrels/test.tsv": unknown}
    message = r"1 of 3 judged queries are not in queries.jsonl \(9\); 2 of 3 judged documents .* corpus.jsonl \(d8, d9\)"
    with pytest.raises(UserError, match=message):
        load_retrieval(folder(files), "test")
    assert load_retrieval(folder(files), "test", drop_unknown=True).qrels == {"1": {"d1": 1}}
    assert "2 of 3 judged documents" in caplog.text and "1 of 3 judged queries" in caplog.text
    write(folder({}) / "qrels" / "test.tsv", "9\td9\t1\n")
    with pytest.raises(UserError, match="nothing is left to evaluate"):
        load_retrieval(folder({}), "test", drop_unknown=True)


def test_empty_texts_are_told(folder, caplog):
    files = {**BEIR, "corpus.jsonl": BEIR["corpus.jsonl"] + lines({"_id": "d3", "title": None, "text": ""})}
    files["queries.jsonl"] += lines({"_id": "4", "text": " "})
    assert list(load_retrieval(folder(files), "test").corpus)[2] == Document("d3", "")
    assert "1 of 3 documents have no text" in caplog.text and "1 of 4 queries have no text" in caplog.text


def test_ids_and_ends_of_lines(tmp_path):
    rows = lines({"id": 12, "text": "a\u2028b"}).encode().replace(b"\n", b"\r\n")
    assert list(read_corpus(write(tmp_path / "corpus.jsonl", b"\xef\xbb\xbf" + rows + b"\r\n"))) == [Document("12", "a\u2028b")]
    assert read_queries(write(tmp_path / "q.tsv", "id\ttext\r\n1\tone\r\n")) == {"1": "one"}
    questions = lines({"question": "who", "answer": ["a"]}, {"question": "why", "answer": []})
    path = write(tmp_path / "NQ-open.dev.jsonl.gz", questions)
    assert read_queries(path) == {"0": "who", "1": "why"} and read_answers(path) == {"0": ["a"], "1": []}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("query-id\tcorpus-id\tscore\na\tb\t1\n", {"a": {"b": 1}}),
        ("corpus-id\tquery-id\tscore\nb\ta\t1\n", {"a": {"b": 1}}),
        ("a\tb\t-1\n", {"a": {"b": -1}}),
        ("a 0 b 3\na Q0 c 0\n\n", {"a": {"b": 3, "c": 0}}),
        ("a\t0\tb\t1\na\t0\tb\t1\n", {"a": {"b": 1}}),
        ("a\tb\nc\td\n", {"a": {"b": 1}, "c": {"d": 1}}),
        ("qid\tpid\na\tb\n", {"a": {"b": 1}}),
        (PAIRS, {"q0": {"d0": 1, "d1": 0}, "q1": {"d0": 0}}),
    ],
)
def test_judgements(tmp_path, text, expected):
    assert read_qrels(write(tmp_path / "qrels.tsv", text)) == expected
    assert read_qrels(write(tmp_path / "qrels.tsv.gz", text)) == expected


def test_judgements_as_json(tmp_path):
    rows = [{"query-id": "a", "corpus-id": "b", "score": 1.0}, {"query-id": "a", "corpus-id": "c", "score": 0}]
    assert read_qrels(write(tmp_path / "test.jsonl", lines(*rows))) == {"a": {"b": 1, "c": 0}}


def test_a_data_set_in_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "datasets--some--collection" / "snapshots" / "0123"
    for name, text in BEIR.items():
        write(snapshot / name, text)
    write(snapshot.parents[1] / "refs" / "main", "0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    data = load_retrieval("some/collection", "test")
    assert data.qrels == load_retrieval(folder(BEIR), "test").qrels and data.name == "collection-test"


@pytest.mark.parametrize(
    ("read", "name", "content", "message"),
    [
        (
            read_corpus,
            "c.jsonl",
            '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}',
            "line 2: the document id '1' is there twice",
        ),
        (read_corpus, "c.jsonl", '{"_id": "", "text": "a"}', "line 1: the document has an empty id"),
        (read_corpus, "c.jsonl", '{"text": "a"}', "line 1: needs an id in '_id' or 'id' or 'qid'"),
        (read_corpus, "c.jsonl", '{"_id": "1", "contents": "a"}', "line 1: needs a text in 'text'; has keys '_id', 'contents'"),
        (read_corpus, "c.jsonl", '{"_id": "1", "text": ["a"]}', r"line 1: needs a text in 'text'; has \['a'\]"),
        (read_corpus, "c.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "2"', "line 2: is no JSON"),
        (read_corpus, "c.jsonl", "[1]", "line 1: is no JSON object"),
        (read_corpus, "c.jsonl", '{"_id": "1", "text": "a \\ud800"}', "line 1: has half a surrogate pair at character 3"),
        (read_corpus, "c.jsonl", '{"_id": "\\ud800", "text": "a"}', "line 1: has half a surrogate pair at character 1"),
        (read_corpus, "c.jsonl", '{"_id": "1", "text": "é"}'.encode("latin-1"), "line 1: is not UTF-8"),
        (read_corpus, "c.tsv", "1\ta\n2\té\n".encode("latin-1"), "line 2: is not UTF-8"),
        (read_corpus, "c.tsv", "1\ta\n".encode("utf-16"), "line 1: (is not UTF-8|holds a NUL)"),
        (read_corpus, "c.tsv", "1\ta\n".encode("utf-16-le"), "line 1: holds a NUL"),
        (read_corpus, "c.tsv", "1\ta\n2\tb\tc\n", "line 2: has 3 tab-separated columns, needed are 2"),
        (read_corpus, "c.tsv", "1\ta\tb\n", "line 1: has 3 tab-separated columns"),
        (read_corpus, "c.tsv", "id\ttext\ttitle\n1\ta\n", "line 2: has 2 tab-separated columns, needed are 3"),
        (read_corpus, "c.csv", "1\ta\n", "cannot tell the format of a corpus"),
        (read_queries, "q.tsv", "1\ta\n1\tb\n", "line 2: the query id '1' is there twice"),
        (read_queries, "q.tsv", "\ta\n", "line 1: the query has an empty id"),
        (read_queries, "q.jsonl", '{"_id": "1", "answers": []}', "line 1: has no text of a query"),
        (read_queries, "q.txt", "a", "cannot tell the format of queries"),
        (read_queries, "q.json", '{"question": "a"}', "holds no JSON list"),
        (read_queries, "q.json", '[{"question": "a"},\n{"que', "is no JSON: .* line 2 column 2"),
        (read_queries, "q.json", '[{"question": "a"}, {"answers": []}]', "entry 2: has no text of a query"),
        (read_answers, "a.csv", "who\tnobody\n", "line 1: has no list of answers"),
        (read_answers, "a.jsonl", '{"qid": "1", "answers": "x"}', "line 1: has no list of answers, but 'x'"),
        (read_qrels, "r.tsv", "a\tb\t1\na\tb\t2\n", "line 2: document 'b' of query 'a' has relevance 2, and 1 before"),
        (read_qrels, "r.tsv", "a\tb\t1\na\tb\n", "line 2: has 2 columns, those before it 3"),
        (read_qrels, "r.tsv", "a\tb\t1\na\tc\t0.5\n", "line 2: the relevance '0.5' is no integer"),
        (read_qrels, "r.jsonl", '{"query-id": "a", "corpus-id": "b", "score": 0.5}', "line 1: the relevance 0.5 is no integer"),
        (read_qrels, "r.jsonl", '{"query-id": "a", "score": 1}', "line 1: needs an id in 'corpus-id'"),
        (read_qrels, "r.tsv", "left\tright\tvalue\na\tb\t1\n", "line 1: is 'left right value'; needed is"),
        (read_qrels, "r.tsv", "a\tb\tc\td\te\n", "line 1: is 'a b c d e'; needed is"),
        (read_qrels, "r.tsv", PAIRS + "who ?\tyes\tx\n", "line 5: the label 'yes' is no integer"),
        (read_corpus, "c.jsonl", f'{{"_id": {"9" * 5000}, "text": "a"}}', "line 1: is no JSON that can be read"),
        (read_corpus, "c.jsonl", "[" * 10**5 + "]" * 10**5, "line 1: is no JSON that can be read"),
        (read_queries, "q.json", "[" * 10**5 + "]" * 10**5, "q.json: is no JSON"),
        (read_answers, "a.csv", "who\t{[]: 1}\n", "line 1: has no list of answers"),
        (
            read_qrels,
            "r.json",
            '[{"question": "a", "positive_ctxs": "b"}]',
            "entry 1: its 'positive_ctxs' are no list of",
        ),
        (
            read_qrels,
            "r.json",
            '[{"question": "a", "positive_ctxs": [1]}]',
            "entry 1: its 'positive_ctxs' are no list of",
        ),
        (read_qrels, "r.jsonl", '{"query-id": "a", "corpus-id": "b", "score": NaN}', "line 1: the relevance nan is no integer"),
        (read_qrels, "r.jsonl", '{"query-id": "a", "corpus-id": "b", "score": Infinity}', "line 1: the relevance inf is no"),
        (read_qrels, "r.tsv", f"a\tb\t1\na\tc\t{'9' * 5000}\n", "line 2: the relevance '9+' is no integer"),
    ],
)
def test_bad_files_name_the_line(tmp_path, read, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        list(read(path))
    assert str(path) in str(error.value)


def test_a_file_that_breaks_off(tmp_path):
    rows = "".join(f"{number}\t{number * 7919 % 1000003}\n" for number in range(5000))
    path = write(tmp_path / "collection.tsv.gz", rows)
    assert len(list(read_corpus(path))) == 5000
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"line \d+: the gzipped file is damaged or breaks off"):
        list(read_corpus(path))
    path.write_bytes(b"1\ttext\n")
    with pytest.raises(UserError, match="line 1: the gzipped file is damaged"):
        list(read_corpus(path))


def test_a_corpus_is_streamed(tmp_path):
    path = write(tmp_path / "collection.tsv", "1\tone\n2\ttwo\nbroken\n")
    documents = read_corpus(path)
    assert [next(documents).id, next(documents).id] == ["1", "2"]
    with pytest.raises(UserError, match="line 3"):
        next(documents)


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "documents", "queries"),
    [
        ("scifact", "test", 5183, 300),
        ("scifact", "train", 5183, 809),
        ("cranfield", None, 1400, 225),
        ("cisi", None, 1460, 76),
        ("msmarco_dl19", "pooled", 10852, 43),
        ("nq_oracle", None, 2600, 2655),
        ("trecqa_wang", "test", 1393, 95),
        ("xquad_en", None, 240, 1190),
    ],
)
def test_real_collections(name, split, documents, queries):
    data = load_retrieval(Path(DATA_DIR) / "retrieval" / name, split)
    assert len(list(data.corpus)) == documents and len(data.evaluated()) == queries


@needs_data
def test_judgements_beyond_a_part_of_a_corpus():
    folder = Path(DATA_DIR) / "retrieval" / "msmarco_dl19"
    with pytest.raises(UserError, match=r"5305 of 9139 judged documents are not in corpus.jsonl.gz"):
        load_retrieval(folder, "full")
    dropped = load_retrieval(folder, "full", drop_unknown=True)
    assert dropped.qrels == load_retrieval(folder, "pooled").qrels


def test_a_question_of_dpr_without_passages(tmp_path):
    path = write(tmp_path / "dev.json", '[{"question": "a", "positive_ctxs": null}, {"question": "b", "positive_ctxs": []}]')
    assert read_qrels(path) == {}
