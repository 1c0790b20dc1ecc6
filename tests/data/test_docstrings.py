"""The standard library as data: what a row may be, that splits share nothing, and that the task can be learnt."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hf_elastic.data.docstrings import (
    LARGE_SHARES,
    MASK,
    MIN_TEXTS,
    SPLIT_SHARES,
    Docstring,
    assign_files,
    build_docstrings,
    build_texts,
    collect_docstrings,
    large_packages,
    mask_packages,
    unique_docstrings,
)


@pytest.fixture(scope="module")
def dataset():
    return build_docstrings()


def write_package(root, name, files):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    for file, texts in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("\n".join(f"def f{i}():\n    {text!r}\n" for i, text in enumerate(texts)))


def test_splits_and_columns(dataset):
    assert list(dataset) == ["train", "validation", "test"]
    names = dataset["train"].features["label"].names
    assert names == sorted(names) and len(names) >= 8
    for rows in dataset.values():
        assert rows.column_names == ["text", "label"]
        assert rows.features["label"].names == names
        assert set(rows["label"][:]) == set(range(len(names)))
    sizes = {split: len(rows) for split, rows in dataset.items()}
    total = sum(sizes.values())
    assert total >= 100 * len(names) * 0.95  # masking may merge a few texts
    assert all(abs(sizes[split] / total - share) < 0.1 for split, share in SPLIT_SHARES.items())


def test_the_larger_one_has_rows_enough_to_tell_sizes_apart(dataset):
    larger = build_texts()
    sizes = {split: len(rows) for split, rows in larger.items()}
    assert sizes["test"] > 4 * len(dataset["test"])
    names = larger["train"].features["label"].names
    assert sum(sizes.values()) >= MIN_TEXTS * len(names) * 0.95
    assert all(abs(sizes[split] / sum(sizes.values()) - share) < 0.1 for split, share in LARGE_SHARES.items())
    texts = [text for rows in larger.values() for text in rows["text"]]
    assert len(texts) == len(set(texts)) and all(text == " ".join(text.split()) for text in texts)


def test_texts_are_normalised_masked_and_unique(dataset):
    names = dataset["train"].features["label"].names
    texts = [text for rows in dataset.values() for text in rows["text"]]
    assert len(texts) == len(set(texts))
    assert all(text == " ".join(text.split()) for text in texts)
    assert mask_packages([Docstring("", "", text) for text in texts], names) == [Docstring("", "", text) for text in texts]


def test_same_seed_same_rows_other_seed_other_split(dataset):
    again, other = build_docstrings(0), build_docstrings(1)
    assert all(dataset[split][:] == again[split][:] for split in dataset)
    assert set(dataset["test"]["text"]) != set(other["test"]["text"])


def test_no_source_file_in_two_splits(tmp_path):
    for kind, name in enumerate(("alpha", "beta")):
        # Each text ends with its package and file as numbers; names would be masked.
        texts = {f"m{i}.py": [f"Docstring {j} from {kind} {i}" for j in range(4 + 9 * (i == 2))] for i in range(6)}
        write_package(tmp_path, name, texts)
    dataset = build_docstrings(3, stdlib=tmp_path, min_docstrings=10, min_length=10)
    files = {split: {text.split(" from ")[1] for text in rows["text"]} for split, rows in dataset.items()}
    assert sum(map(len, files.values())) == len(set.union(*files.values())) == 12
    assert {"0 2", "1 2"} <= files["train"], "the largest file of each package"
    assert all(int(text[-3]) == label for rows in dataset.values() for text, label in zip(rows["text"], rows["label"]))


def test_every_package_is_in_every_split_even_with_three_files():
    rows = [Docstring("p", f"p/{name}.py", f"{name}{i}") for name, count in (("a", 50), ("b", 1), ("c", 1)) for i in range(count)]
    for seed in range(5):
        splits = assign_files(rows, seed)
        assert splits["p/a.py"] == "train"
        assert sorted(splits.values()) == sorted(SPLIT_SHARES)


def test_collect_reads_modules_classes_and_functions_but_no_tests(tmp_path):
    write_package(tmp_path, "pkg", {"tests/test_a.py": ["A docstring in a test folder, to be left out."]})
    source = (
        '"""Module   text\n that is long."""\nclass A:\n    """Class text long."""\n    async def f(self):\n        """Short"""\n'
    )
    (tmp_path / "pkg" / "a.py").write_text(source)
    (tmp_path / "single.py").write_text('"""A module outside of any package."""')
    found = collect_docstrings(tmp_path, min_length=10)
    assert found == [Docstring("pkg", "pkg/a.py", "Module text that is long."), Docstring("pkg", "pkg/a.py", "Class text long.")]


def test_comments_and_code_of_functions_are_further_texts(tmp_path):
    write_package(tmp_path, "pkg", {})
    code = 'def f(x):\n    """Short"""\n    if x:  # why\n        return "#no comment"\n    # last'
    source = f"#!first\n# block\n\n# second  block\n{code}"
    (tmp_path / "pkg" / "a.py").write_text(source)
    texts = [row.text for row in collect_docstrings(tmp_path, 1, with_code=True)]
    assert texts == ["Short", "first block", "second block", "why", "last", "if x: return '#no comment'"]


def test_source_encoding_is_honoured(tmp_path):
    write_package(tmp_path, "pkg", {})
    (tmp_path / "pkg" / "a.py").write_bytes('# -*- coding: latin-1 -*-\n"""Écrit en français."""\n'.encode("latin-1"))
    assert [row.text for row in collect_docstrings(tmp_path, 1)] == ["Écrit en français."]


def test_mask_covers_dotted_paths_of_all_names_and_whole_words_only():
    masked = mask_packages([Docstring("xml", "f", "Use xml.sax.handler, HTTP or xmlrpc. See https://a.")], ["xml", "http"])
    assert masked[0].text == f"Use {MASK}, {MASK} or xmlrpc. See https://a."


def test_text_of_two_packages_is_dropped_and_repeats_are_kept_once():
    rows = [Docstring(*row) for row in (("a", "f", "both"), ("a", "f", "own"), ("b", "g", "both"), ("a", "h", "own"))]
    assert unique_docstrings(rows) == [Docstring("a", "f", "own")]


def test_large_packages_counts_texts_and_files():
    rows = [Docstring("a", f"a{i}", f"text {i}") for i in range(4)] + [Docstring("b", "b0", f"more {i}") for i in range(9)]
    assert large_packages(rows, 4, 4) == ["a"]
    assert large_packages(rows, 4, 1) == ["a", "b"]
    assert large_packages(rows, 5, 1) == ["b"]


def test_task_is_learnable_but_not_trivial(dataset):
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(max_iter=300))
    model.fit(dataset["train"]["text"][:], dataset["train"]["label"][:])
    labels = np.array(dataset["test"]["label"][:])
    majority = np.bincount(labels).max() / len(labels)
    accuracy = model.score(dataset["test"]["text"][:], labels)
    assert majority + 0.2 < accuracy < 0.8


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="min_files=2: must be at least 3"):
        build_docstrings(min_files=2)
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        build_docstrings(stdlib=tmp_path / "missing")
    with pytest.raises(ValueError, match=r"0 package\(s\) with at least 100 docstrings"):
        build_docstrings(stdlib=tmp_path)
