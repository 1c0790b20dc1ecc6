"""Hard negatives are what a first stage finds and what is not right, in the columns that losses want."""

import pytest

pytest.importorskip("sentence_transformers", minversion="6")
pytest.importorskip("bm25s")

from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_search import data, make_model, model  # noqa: F401

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.data import Document, RetrievalData
from hf_elastic.retrieval.metrics import score_run
from hf_elastic.retrieval.negatives import FORMATS, bm25, hard_negatives, positive_pairs

pytestmark = pytest.mark.one_lane

CORPUS = [
    Document("a", "red apple pie"),
    Document("b", "green apple pie"),
    Document("c", "apple tree"),
    Document("d", "apple"),
    Document("e", ""),
    Document("f", "red apple pie"),
    Document("g", "blue sea"),
]
FRUIT = RetrievalData(CORPUS, {"q": "red apple", "r": "sea", "none": "apple"}, {"q": {"a": 2, "b": 1, "c": 0}, "r": {"g": 1}})
RUN = {"q": {"d": 1.0, "f": 5.0, "a": 4.0, "c": 2.0, "b": 3.0}, "r": {"g": 1.0, "a": 0.5}, "none": {"a": 1.0}}


def test_bm25_finds_words():
    run = bm25(FRUIT, k=3)
    assert list(run) == ["q", "r"] and set(list(run["q"])[:2]) == {"a", "f"} and len(run["q"]) == 3
    assert list(run["r"]) == ["g"]  # no other has a word of it
    values = list(run["q"].values())
    assert values == sorted(values, reverse=True) and values[0] == values[1]
    empty = RetrievalData(CORPUS, {"q": "", "r": "unknown"}, {"q": {"a": 1}, "r": {"a": 1}})
    assert bm25(empty) == {"q": {}, "r": {}}
    with pytest.raises(UserError, match="no document has a word"):
        bm25(RetrievalData([Document("e", "")], {"q": "a"}, {"q": {"e": 1}}))
    with pytest.raises(UserError, match="k must be an integer of at least 1"):
        bm25(FRUIT, k=0)


def test_bm25_finds_what_is_right(data):  # noqa: F811
    run = bm25(data)
    assert set(run) == set(data.qrels) and score_run(run, data, ["nDCG@10"]).means["nDCG@10"] > 0.8


def test_triplets(caplog):
    rows = hard_negatives(FRUIT, RUN, num_negatives=2).to_list()
    expected = [
        ("red apple", right, wrong) for right in ("red apple pie", "green apple pie") for wrong in ("apple tree", "apple")
    ]
    assert [tuple(row.values()) for row in rows] == [*expected, ("sea", "blue sea", "red apple pie")]
    assert list(rows[0]) == ["anchor", "positive", "negative"] and "1 of 2 queries have fewer than 2 negatives" in caplog.text
    assert positive_pairs(FRUIT).to_list()[-1] == {"anchor": "sea", "positive": "blue sea"} and len(positive_pairs(FRUIT)) == 3


def test_other_formats():
    tuples = hard_negatives(FRUIT, RUN, num_negatives=2, output_format="n-tuple").to_list()
    first = {"anchor": "red apple", "positive": "red apple pie", "negative_1": "apple tree", "negative_2": "apple"}
    assert tuples == [first, {**first, "positive": "green apple pie"}]
    pairs = hard_negatives(FRUIT, RUN, num_negatives=2, output_format="labeled-pair")
    assert list(pairs["label"]) == [1, 1, 0, 0, 1, 0] and pairs.column_names == ["anchor", "positive", "label"]
    lists = hard_negatives(FRUIT, RUN, num_negatives=2, output_format="labeled-list").to_list()
    assert lists[0] == {"anchor": "red apple", "positive": ["red apple pie", "apple tree", "apple"], "labels": [1, 0, 0]}
    assert len(lists) == 3
    assert hard_negatives(FRUIT, RUN, num_negatives=1, range_min=1).to_list()[0]["negative"] == "apple"


def test_two_queries_with_one_text():
    twice = RetrievalData(CORPUS, {"q": "apple", "r": "apple"}, {"q": {"a": 1}, "r": {"b": 1}})
    rows = hard_negatives(twice, {"q": {"b": 2.0, "d": 1.0}, "r": {"a": 2.0, "c": 1.0}}).to_list()
    assert {(row["positive"], row["negative"]) for row in rows} == {("red apple pie", "apple"), ("green apple pie", "apple tree")}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_as_first_stage(data, model, kind):  # noqa: F811
    texts = {document.id: document.text for document in data.corpus}
    right = {(data.queries[q], texts[d]) for q, found in data.qrels.items() for d, score in found.items() if score}
    mined = hard_negatives(data, model, num_negatives=3, output_format=kind, verbose=False)
    ours = hard_negatives(data, bm25(data), num_negatives=3, output_format=kind)
    assert mined.features == ours.features and len(mined) > 0
    for row in (*mined, *ours):
        negatives = [value for column, value in row.items() if column.startswith("negative")]
        if kind == "labeled-list":
            negatives = [text for text, label in zip(row["positive"], row["labels"]) if not label]
        elif kind == "labeled-pair":
            negatives = [] if row["label"] else [row["positive"]]
        assert not any((row["anchor"], text) in right for text in negatives)


def test_what_is_refused(data, model):  # noqa: F811
    with pytest.raises(UserError, match="output_format: 'pairs' is unknown; known: triplet, n-tuple"):
        hard_negatives(FRUIT, RUN, output_format="pairs")
    with pytest.raises(UserError, match="relative_margin: only for a model"):
        hard_negatives(FRUIT, RUN, relative_margin=0.1)
    with pytest.raises(UserError, match="num_negatives must be an integer of at least 1"):
        hard_negatives(FRUIT, RUN, num_negatives=0)
    with pytest.raises(UserError, match="the run has no negatives"):
        hard_negatives(FRUIT, {"q": {"a": 1.0}})
    with pytest.raises(UserError, match="no document is judged relevant"):
        hard_negatives(RetrievalData(CORPUS, {"q": "x"}, {"q": {"a": 0}}), RUN)


def test_they_train(data, tmp_path):  # noqa: F811
    trained = make_model(tmp_path)
    before = trained.encode(["word1"])
    options = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True}
    args = SentenceTransformerTrainingArguments(str(tmp_path / "out"), save_strategy="no", **options)
    rows = hard_negatives(data, bm25(data), num_negatives=2, output_format="n-tuple")
    loss = MultipleNegativesRankingLoss(trained)
    SentenceTransformerTrainer(model=trained, args=args, train_dataset=rows, loss=loss).train()
    assert abs(trained.encode(["word1"]) - before).max() > 1e-3
