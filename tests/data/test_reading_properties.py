"""However labels and rows are written down: what is read is what was written, or one line says why not."""

import csv
import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from hf_elastic.core.errors import UserError
from hf_elastic.data import columns_of, encode_labels, load_text_dataset
from hf_elastic.data.labels import MULTI, label_names

pytestmark = pytest.mark.one_lane

# No surrogates, which no file can hold, and no control characters, which are no part of a label.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"))
NAME = st.text(CHARACTERS, min_size=1, max_size=6).filter(str.strip)
NAMES = st.lists(NAME, min_size=2, max_size=5, unique_by=lambda name: name.strip().casefold())
VALUES = st.one_of(
    st.lists(st.none() | st.integers(-2, 5)),
    st.lists(st.none() | st.floats(-2, 5) | st.sampled_from([0.0, 1.0, float("nan"), float("inf")])),
    st.lists(st.none() | st.booleans()),
    st.lists(st.none() | NAME | st.sampled_from(["", " ", "0", "1.0", "a", "A", "LABEL_1"])),
    st.lists(st.none() | st.lists(st.none() | st.integers(-1, 3), max_size=3)),
    st.lists(st.lists(NAME | st.sampled_from(["a", "b", "1", ""]), max_size=3)),
)


@pytest.fixture(scope="module", autouse=True)
def _uncached():
    """Thousands of data sets are not worth a file each."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    yield
    datasets.enable_caching()
    datasets.enable_progress_bars()


def head(names: list[str], **config) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **config)


def of(labels: list, feature=None) -> DatasetDict:
    features = None if feature is None else Features({"label": feature})
    return DatasetDict(train=Dataset.from_dict({"label": labels}, features=features))


def ids(dataset: DatasetDict, config) -> list:
    return encode_labels(dataset, "label", config).dataset["train"]["label"][:]


@given(NAMES, st.data())
def test_a_name_is_found_wherever_it_stands(names, data):
    """As a string, and as a ClassLabel whose names are in any order."""
    config = head(names)
    assume(label_names(config) is not None)
    chosen = data.draw(st.lists(st.sampled_from(range(len(names))), min_size=1, max_size=6))
    order = data.draw(st.permutations(names))
    assert ids(of([names[index] for index in chosen]), config) == chosen
    named = of([order.index(names[index]) for index in chosen], ClassLabel(names=order))
    assert ids(named, config) == chosen


@given(NAMES, st.data())
def test_several_names_are_found_in_any_form(names, data):
    """As lists of names, of ids, and as a 0 or 1 for every label."""
    config = head(names, problem_type=MULTI)
    assume(label_names(config) is not None and not any(name.strip().isdecimal() for name in names))
    every = st.lists(st.sampled_from(range(len(names))), unique=True)
    rows = data.draw(st.lists(every, min_size=1, max_size=4))
    expected = [[float(index in row) for index in range(len(names))] for row in rows]
    assert ids(of(expected), config) == expected
    if any(rows):  # a column of empty lists has no type
        assert ids(of([[names[index] for index in row] for row in rows]), config) == expected
        if any(len(row) != len(names) or not set(row) <= {0, 1} for row in rows):
            assert ids(of(rows), config) == expected


@given(VALUES, st.sampled_from([None, ["a", "b"], ["1", "0"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["x"]]))
def test_any_label_is_a_number_of_the_head_or_one_line(values, names):
    config = None if names is None else head(names)
    try:
        found = encode_labels(of(values), "label", config)
    except UserError as error:
        assert "\n" not in str(error) and "label" in str(error)
        return
    size = len(found.names)
    for value in found.dataset["train"]["label"][:] if values else []:
        if isinstance(value, list):
            assert len(value) == size and set(value) <= {0.0, 1.0}
        elif names == ["x"]:
            assert isinstance(value, float)
        else:
            assert 0 <= value < size


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_numbers_of_a_regression_stay_what_they_are(values):
    config = BertConfig(num_labels=1)
    assert ids(of(values), config) == values
    assert ids(of([repr(value) for value in values]), config) == values


def write(path, rows: list[dict]) -> None:
    rows = [{"text": row["text"], "label": row["label"]} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows, features=Features({name: Value("string") for name in rows[0]})).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([rows[0].keys(), *(row.values() for row in rows)])


TEXT = st.text(CHARACTERS, max_size=12).map("x".__add__)  # not all digits, which are read as numbers
LABEL = st.sampled_from(["pos", "neg", "NA", "null", ""])
ROWS = st.lists(st.fixed_dictionaries({"text": TEXT, "label": LABEL}), min_size=2, max_size=6)
FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
BYTES = st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-16"))


@FILES
@given(rows=ROWS, suffix=st.sampled_from(["csv", "jsonl", "parquet"]))
def test_a_file_is_read_as_it_was_written(rows, suffix, tmp_path):
    """Quotes, commas, every alphabet, and texts that look like missing values; a missing label names its row."""
    path = tmp_path / f"train.{suffix}"
    write(path, rows)
    dataset = load_text_dataset(str(path))
    read = [row for split in dataset.values() for row in split]
    assert sorted(map(str, map(sorted, map(dict.items, read)))) == sorted(map(str, map(sorted, map(dict.items, rows))))
    config = head(["neg", "null", "pos", "NA"])
    missing = [number for number, row in enumerate(rows) if not row["label"]]
    if missing:
        with pytest.raises(UserError, match=f"row ({'|'.join(map(str, missing))}): no label"):
            encode_labels(dataset, "label", config)
    else:
        splits = encode_labels(dataset, "label", config).dataset.values()
        names = [config.id2label[index] for split in splits for index in split["label"][:]]
        assert sorted(names) == sorted(row["label"] for row in rows)


@FILES
@given(content=BYTES, suffix=st.sampled_from(["csv", "tsv", "jsonl", "txt"]))
def test_any_bytes_are_rows_or_one_line(content, suffix, tmp_path):
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    try:
        dataset = load_text_dataset(str(path))
        columns, label = columns_of(dataset, task="sequence-classification")
        encode_labels(dataset, label)
    except UserError as error:
        assert str(error)
    else:
        assert columns and all(isinstance(text, str) or text is None for rows in dataset.values() for text in rows[columns[0]])


COLUMN = st.sampled_from(["text", "sentence1", "sentence2", "premise", "hypothesis", "question", "label", "labels", "other"])
VALUE = st.sampled_from(["a", 1, None])


@given(st.dictionaries(COLUMN, VALUE, min_size=1), st.none() | st.lists(COLUMN, max_size=3), st.none() | COLUMN)
def test_columns_are_there_and_hold_text_or_one_line_says_so(columns, text, label):
    dataset = DatasetDict(train=Dataset.from_dict({name: [value] for name, value in columns.items()}))
    try:
        texts, found = columns_of(dataset, text=text, label=label, task="sequence-classification")
    except UserError as error:
        assert "column" in str(error)
        return
    assert 1 <= len(texts) <= 2 and found in columns
    assert all(columns[name] == "a" for name in texts)
    assert text is None or texts == text
