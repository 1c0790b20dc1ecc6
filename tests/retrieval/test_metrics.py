"""Metrics against values worked out by hand and against ir_measures' own command; run files; the randomisation test."""

import gzip
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ir_measures")

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.data import Document, RetrievalData, load_retrieval
from hf_elastic.retrieval.metrics import answer_accuracy, check_metrics, compare, has_answer, read_run, score_run, write_run

pytestmark = pytest.mark.one_lane

DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
needs_data = pytest.mark.skipif(DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with retrieval/*")
QRELS = {"a": {"d1": 3, "d2": 0, "d3": 1}, "b": {"d1": 1}, "c": {"d2": 1}, "none": {"d4": 0}}
RUN = {"a": {"d2": 0.9, "d1": 0.8, "d4": 0.7, "d3": 0.6}, "b": {"d1": 2.0}, "none": {"d1": 1.0}, "unknown": {"d1": 1.0}}


def judged(qrels=QRELS, **kwargs) -> RetrievalData:
    return RetrievalData([], dict.fromkeys(qrels, ""), qrels, **kwargs)


def test_values_by_hand():
    scores = score_run(RUN, judged(), ["nDCG@10", "nDCG@3", "R@2", "RR@10", "AP", "P@1", "R(rel=2)@2"])
    ideal = 3 + 1 / math.log2(3)
    expected = {
        "nDCG@10": [(3 / math.log2(3) + 1 / math.log2(5)) / ideal, 1, 0, 0],
        "nDCG@3": [3 / math.log2(3) / ideal, 1, 0, 0],
        "R@2": [1 / 2, 1, 0, 0],
        "RR@10": [1 / 2, 1, 0, 0],
        "AP": [(1 / 2 + 2 / 4) / 2, 1, 0, 0],
        "P@1": [0, 1, 0, 0],
        "R(rel=2)@2": [1, 0, 0, 0],
    }
    for metric, values in expected.items():
        assert list(scores.per_query[metric]) == list(QRELS)
        assert list(scores.per_query[metric].values()) == pytest.approx(values)
        assert scores.means[metric] == pytest.approx(sum(values) / 4)
    assert (scores.without_results, scores.without_judgements) == (1, 1)


def test_nothing_was_found():
    scores = score_run({"a": {}, "b": {}}, judged(), ["nDCG@10", "RR@10", "R@5"])
    assert set(scores.means.values()) == {0.0} and scores.without_results == 4
    assert score_run({}, judged(), ["nDCG@10"]).means == {"nDCG@10": 0.0}


def test_the_values_of_ir_measures_own_command(tmp_path):
    generator = np.random.default_rng(0)
    qrels = {f"q{q}": {f"d{d}": int(generator.integers(0, 4)) for d in generator.choice(50, 12, False)} for q in range(30)}
    run = {f"q{q}": {f"d{d}": float(generator.random()) for d in generator.choice(50, 20, False)} for q in range(2, 33)}
    rows = [f"{query} 0 {name} {score}\n" for query, found in qrels.items() for name, score in found.items()]
    (tmp_path / "qrels.txt").write_text("".join(rows))
    write_run(run, tmp_path / "run.txt", tag="test")
    metrics = ["nDCG@10", "R@10", "RR@10", "AP", "P(rel=2)@5"]
    command = [sys.executable, "-m", "ir_measures", "--by_query", "--places", "8"]
    command += [str(tmp_path / "qrels.txt"), str(tmp_path / "run.txt"), *metrics]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    theirs = {tuple(line.split("\t")[:2]): float(line.split("\t")[2]) for line in printed if line}
    ours = score_run(read_run(tmp_path / "run.txt"), judged(qrels), metrics)
    for metric in metrics:
        assert ours.means[metric] == pytest.approx(theirs["all", metric], abs=1e-8)
        for query, value in ours.per_query[metric].items():
            assert value == pytest.approx(theirs[query, metric], abs=1e-8)
    assert (ours.without_results, ours.without_judgements) == (2, 3)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["best@10"], "'best@10' is none of ir_measures"),
        (["nDCG@ten"], "'nDCG@ten' is none of ir_measures"),
        (["R"], "'R' is none of ir_measures"),
        (["nDCG@10", "nDCG@0"], "'nDCG@0': cutoff=0 must be at least 1"),
        (["P(rel=0)@5"], "'P@?.*rel=0.* must be at least 1"),
        (["__import__('os')"], "is none of ir_measures"),
        (["Answer"], "'Answer': Answer@k needs a number of documents"),
        (["Answer@0"], "'Answer@0': Answer@k needs"),
        (["R@100"], "R@100 looks at 100 documents for each query, and k=50"),
        (["Answer@100"], "Answer@100 looks at 100 documents"),
        ([], "needed is a list of names"),
        ("nDCG@10", "needed is a list of names"),
    ],
)
def test_what_is_no_metric(metrics, message):
    with pytest.raises(UserError, match=message):
        check_metrics(metrics, k=50)
    check_metrics(["nDCG@50", "AP", "Answer@50"], k=50)


def test_metrics_that_the_data_cannot_give():
    with pytest.raises(UserError, match="Answer@5: data has no answers"):
        score_run(RUN, judged(), ["Answer@5"])
    with pytest.raises(UserError, match=r"nDCG@10, AP: data has no judgements; Answer@20"):
        score_run(RUN, RetrievalData([], {"a": ""}, answers={"a": ["x"]}), ["nDCG@10", "Answer@1", "AP"])


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("Wilhelm Röntgen", "To WILHELM röntgen, of Germany", True),
        ("Wilhelm Röntgen", "Wilhelm Conrad Röntgen", False),
        ("Ro\u0308ntgen", "R\u00f6ntgen", True),
        ("May 18, 2018", "on May 18 , 2018.", True),
        ("May 18 2018", "May 18, 2018", False),
        ("one", "someone", False),
        ("U.S.", "in the U.S. of", True),
        ("it's", "it 's", True),
        ("", "anything", False),
    ],
)
def test_an_answer_is_in_a_text(answer, text, expected):
    assert has_answer([answer], text) is expected
    assert has_answer(["zebra", answer], text) is expected


def test_answer_accuracy():
    corpus = [Document("d1", "Paris It is big", "Paris"), Document("d2", "in Paris"), Document("d3", "nothing")]
    data = RetrievalData(corpus, {"q": "where", "r": "who", "s": "what"}, answers={"q": ["Paris"], "r": ["Paris"], "s": ["x"]})
    run = {"q": {"d3": 1.0, "d2": 2.0}, "r": {"d1": 3.0, "d3": 2.0, "d2": 1.0}}
    assert answer_accuracy(run, data, 1) == {"q": 1.0, "r": 0.0, "s": 0.0}  # a title is no text
    scores = score_run(run, data, ["Answer@3"])
    assert scores.means == {"Answer@3": pytest.approx(2 / 3)} and scores.without_results == 1


def test_a_run_file(tmp_path):
    run = {"q1": {"d2": 0.1 + 0.2, "d1": 1e-30, "d3": 5.0}, "q2": {"d9": -1.5}}
    for name in ("run.txt", "sub/run.txt.gz"):
        path = tmp_path / name
        write_run(run, path, tag="mine")
        assert read_run(path) == run and list(read_run(path)["q1"]) == ["d3", "d2", "d1"]
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
        assert lines[0] == "q1 Q0 d3 1 5.0 mine" and lines[3] == "q2 Q0 d9 1 -1.5 mine"
        assert [child.name for child in path.parent.iterdir() if child.is_file()] == [path.name]


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q": {"a b": 1.0}}, "t", "'a b' cannot be in a run file"),
        ({"": {"a": 1.0}}, "t", "'' cannot be"),
        ({"q": {"a": 1.0}}, "my run", "'my run' cannot be"),
        ({"q": {"a": 1.0, "b": math.nan}}, "t", "document 'b' of query 'q' has the score nan"),
    ],
)
def test_what_a_run_file_cannot_hold(tmp_path, run, tag, message):
    (tmp_path / "run.txt").write_text("before")
    with pytest.raises(UserError, match=message):
        write_run(run, tmp_path / "run.txt", tag=tag)
    assert (tmp_path / "run.txt").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 0.5\n", "line 1: has 5 columns; a run has six"),
        ("q Q0 d 1 0.5 t\nq Q0 d 2 0.4 t\n", "line 2: document 'd' is there twice for query 'q'"),
        ("q Q0 d 1 high t\n", "line 1: the score 'high' is no number"),
        ("q Q0 d 1 nan t\n", "line 1: the score 'nan' is not finite"),
        ("\n", "holds no run"),
    ],
)
def test_bad_run_files(tmp_path, text, message):
    (tmp_path / "run.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path / "run.txt")


def by_name(values) -> dict:
    return {f"q{place}": float(value) for place, value in enumerate(values)}


def test_an_exact_randomisation_test():
    run, baseline = np.array([0.5, 0.9, 0.4, 0.7, 0.3]), np.array([0.4, 0.5, 0.5, 0.4, 0.3])
    differences = run - baseline
    found = [abs(np.dot(signs, differences)) >= abs(differences.sum()) - 1e-12 for signs in itertools.product([1, -1], repeat=5)]
    test = compare(by_name(run), by_name(baseline))
    assert test.exact and test.permutations == 16  # one query is a tie
    assert test.p_value == pytest.approx(np.mean(found)) and test.difference == pytest.approx(differences.mean())
    back = compare(by_name(baseline), by_name(run))
    assert back.p_value == test.p_value and back.difference == pytest.approx(-test.difference)
    same = compare(by_name(run), by_name(run))
    assert (same.difference, same.p_value, same.exact) == (0.0, 1.0, True)


def test_a_random_one_is_near_the_exact_one():
    generator = np.random.default_rng(1)
    baseline = generator.random(16)
    run = baseline + generator.normal(0.03, 0.1, 16)
    exact = compare(by_name(run), by_name(baseline))
    drawn = compare(by_name(run), by_name(baseline), permutations=50_000, seed=3)
    assert exact.exact and not drawn.exact and drawn.permutations == 50_000
    assert abs(drawn.p_value - exact.p_value) < 5 * math.sqrt(exact.p_value * (1 - exact.p_value) / 50_000)
    assert compare(by_name(run), by_name(baseline), permutations=50_000, seed=3) == drawn
    assert compare(by_name(run), by_name(baseline), permutations=50_000, seed=4) != drawn


def test_many_queries():
    generator = np.random.default_rng(2)
    baseline = generator.random(3000)
    better = compare(by_name(baseline + generator.normal(0.1, 0.1, 3000)), by_name(baseline), permutations=2000)
    assert better.p_value == 1 / 2001 and better.difference == pytest.approx(0.1, abs=0.01)


def test_runs_over_other_queries_are_not_compared():
    with pytest.raises(UserError, match="have 2 and 1 queries, and 1 in common"):
        compare({"a": 1.0, "b": 0.0}, {"a": 1.0})
    with pytest.raises(UserError, match="permutations must be an integer of at least 1"):
        compare({"a": 1.0}, {"a": 1.0}, permutations=0)


@needs_data
def test_published_runs():
    folder = Path(DATA_DIR) / "retrieval" / "msmarco_dl19"
    data = load_retrieval(folder, "pooled")
    bm25 = score_run(read_run(folder / "run.bm25.txt.gz"), data)
    dense = score_run(read_run(folder / "run.tasb.txt.gz"), data)
    assert (bm25.without_results, bm25.without_judgements) == (0, 0)
    test = compare(dense.per_query["nDCG@10"], bm25.per_query["nDCG@10"])
    assert test.difference == pytest.approx(dense.means["nDCG@10"] - bm25.means["nDCG@10"]) and test.p_value < 0.001


@needs_data
def test_every_answer_is_in_its_passage():
    data = load_retrieval(Path(DATA_DIR) / "retrieval" / "nq_oracle")
    right = {query: dict.fromkeys(found, 1.0) for query, found in data.qrels.items()}
    assert score_run(right, data, ["nDCG@10", "Answer@1"]).means == {"nDCG@10": 1.0, "Answer@1": 1.0}
