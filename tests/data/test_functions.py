"""The stdlib-functions data set: what a row may be, that splits share no module, and that one half alone tells nothing."""

import random
from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hf_elastic.data.functions import SPLIT_SHARES, Function, assign_modules, build_functions, collect_functions, in_words, pair


@pytest.fixture(scope="module")
def dataset():
    return build_functions()


def test_splits_columns_and_balance(dataset):
    assert list(dataset) == list(SPLIT_SHARES)
    total = sum(map(len, dataset.values()))
    assert total > 9000
    for split, rows in dataset.items():
        assert rows.column_names == ["sentence1", "sentence2", "label"]
        assert rows.features["label"].names == ["other", "own"]
        assert abs(len(rows) / total - SPLIT_SHARES[split]) < 0.02
        assert sum(rows["label"]) / len(rows) == pytest.approx(0.5, abs=0.01)


def test_no_docstring_is_in_two_splits_or_more_than_twice_in_one(dataset):
    texts = [set(rows["sentence2"]) for rows in dataset.values()]
    assert sum(map(len, texts)) == len(set.union(*texts))
    for rows in dataset.values():
        assert set(Counter(zip(rows["sentence2"], rows["label"])).values()) == {1}


def test_same_seed_same_rows_other_seed_other_pairs(dataset):
    again, other = build_functions(0), build_functions(1)
    assert all(dataset[split][:] == again[split][:] for split in dataset)
    for split in dataset:
        wrong = [{row for row in zip(*rows[split][:].values()) if not row[2]} for rows in (dataset, other)]
        assert len(wrong[0] & wrong[1]) < 0.05 * len(wrong[0])


def test_modules_stay_whole_and_fill_the_shares():
    functions = [Function(f"m{size}", "f", f"{size} {i}") for size in (50, 30, 20, 10, 5, 5, 3, 1) for i in range(size)]
    splits = assign_modules(functions)
    sizes = Counter(splits[function.module] for function in functions)
    assert splits["m50"] == "train" and all(
        abs(sizes[split] / len(functions) - share) < 0.1 for split, share in SPLIT_SHARES.items()
    )


def test_collect_reads_modules_and_packages_but_no_tests_nor_special_methods(tmp_path):
    (tmp_path / "pkg" / "tests").mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text(
        'class MyQueue:\n    """A MyQueue of\n  things."""\n    def __init__(self):\n        """Special."""\n'
        '    async def get_item(self, itemIndex, *, wait=1):\n        """Get an item."""\n'
    )
    (tmp_path / "pkg" / "tests" / "a.py").write_text('def f():\n    """Of a test."""\n')
    (tmp_path / "single.py").write_bytes(
        '# -*- coding: latin-1 -*-\ndef à():\n    """Écrit."""\ndef copy():\n    """Écrit."""\n'.encode("latin-1")
    )
    assert collect_functions(tmp_path) == [
        Function("pkg", "my queue", "A it of things."),
        Function("pkg", "get item ( item index, wait )", "Get an item."),
        Function("single", "à (  )", "Écrit."),
    ]


def test_pairs_have_every_half_twice_and_no_namesakes_as_wrong_ones():
    functions = [Function("m", f"f{i}", f"text {i}") for i in range(20)] + [Function("n", "f0", "of a namesake")]
    rows = pair(functions, random.Random(0))
    assert {(words, text) for words, text, label in rows if label} == {(one.words, one.docstring) for one in functions}
    own = {one.docstring: one.words for one in functions}
    assert all(own[text] != words for words, text, label in rows if not label)
    assert 40 <= len(rows) <= 42


@pytest.mark.parametrize(
    ("name", "words"), [("getUser_name", "get user name"), ("HTTPServer", "httpserver"), ("_f", "f"), ("_", "")]
)
def test_names_in_words(name, words):
    assert in_words(name) == words


def test_words_alone_do_not_tell(dataset):
    """Each half comes once with each label, so counting words of both is no better than guessing."""
    texts = {split: [f"{one} {two}" for one, two in zip(rows["sentence1"], rows["sentence2"])] for split, rows in dataset.items()}
    model = make_pipeline(TfidfVectorizer(min_df=2), LogisticRegression()).fit(texts["train"], dataset["train"]["label"][:])
    assert model.score(texts["test"], dataset["test"]["label"][:]) < 0.56


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        build_functions(stdlib=tmp_path / "missing")
    with pytest.raises(ValueError, match="too few functions"):
        build_functions(stdlib=tmp_path)
