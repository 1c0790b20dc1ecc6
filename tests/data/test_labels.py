"""Which number a label gets: the head's names decide, whatever the data set calls its labels and in whatever order."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertConfig

from hf_elastic.core.errors import UserError
from hf_elastic.data import encode_labels, load_text_dataset
from hf_elastic.data.labels import MULTI, REGRESSION, SINGLE, label_names, labels_by_name

pytestmark = pytest.mark.one_lane

NLI = ["contradiction", "entailment", "neutral"]


def head(*names: str, **config) -> BertConfig:
    """A head with these names; with a number instead, one that has so many and no names."""
    if len(names) == 1 and isinstance(names[0], int):
        return BertConfig(num_labels=names[0], **config)
    by_id = dict(enumerate(names))
    return BertConfig(id2label=by_id, label2id={name: index for index, name in by_id.items()}, **config)


def of(values, classes: list[str] | None = None, **splits) -> DatasetDict:
    def make(labels):
        columns = {"text": ["x"] * len(labels), "label": labels}
        features = None if classes is None else Features({"text": Value("string"), "label": ClassLabel(names=classes)})
        return Dataset.from_dict(columns, features=features)

    return DatasetDict({split: make(labels) for split, labels in {"train": values, **splits}.items()})


# name -> (head, labels of train, names of a ClassLabel or None, ids)
RIGHT = {
    "names of a ClassLabel in another order": (head(*NLI), [0, 1, 2], ["entailment", "neutral", "contradiction"], [1, 2, 0]),
    "names of a ClassLabel in the same order": (head(*NLI), [2, 0, 1], NLI, [2, 0, 1]),
    "strings": (head("pos", "neg"), ["neg", "pos"], None, [1, 0]),
    "other case": (head("NEGATIVE", "POSITIVE"), ["positive", " Negative"], None, [1, 0]),
    "case that means something": (head("A", "a", "b"), ["a", "A", "B"], None, [1, 0, 2]),
    "integers are ids": (head("pos", "neg"), [0, 1, 1], None, [0, 1, 1]),
    "integers as strings": (head("pos", "neg"), ["1", "0"], None, [1, 0]),
    "whole floats": (head("pos", "neg"), [1.0, 0.0], None, [1, 0]),
    "digits that a ClassLabel calls so": (head("pos", "neg"), [0, 1], ["1", "0"], [1, 0]),
    "integers that are names and no ids": (head("1", "2", "3"), [3, 1, 2], None, [2, 0, 1]),
    "integers below 0 that are names": (head("-1", "0", "1"), [-1, 1, 0], None, [0, 2, 1]),
    "strings that are names and ids": (head("1", "0"), ["1", "0"], None, [0, 1]),
    "zeros that a file loses": (head("01", "02"), [2, 1], None, [1, 0]),
    "fractions that are names": (head("1.5", "2.0"), [1.5, 2.0], None, [0, 1]),
    "truth values": (head("TRUE", "FALSE"), [True, False], None, [0, 1]),
    "fewer classes than the head": (head(*NLI), ["neutral", "neutral"], None, [2, 2]),
    "a class that no row has": (head("no", "yes"), [0, 2], ["yes", "maybe", "no"], [1, 0]),
    "no names, integers": (head(3), [2, 0], None, [2, 0]),
    "no names, strings": (head(3), ["b", "a"], None, [1, 0]),
    "no names, ClassLabel": (head(2), [0, 1], ["z", "a"], [0, 1]),
    "no names, its own placeholders": (head(12), ["LABEL_10", "label_2"], None, [10, 2]),
    "no names, digits as strings": (head(12), ["10", "2"], None, [10, 2]),
    "no names, truth values": (head(2), [True, False], None, [1, 0]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_label_gets_the_number_that_the_head_gives_it(name):
    config, values, classes, ids = RIGHT[name]
    dataset, names, problem_type = encode_labels(of(values, classes), "label", config)
    assert dataset["train"]["label"][:] == ids and problem_type == SINGLE
    assert len(names) == config.num_labels
    assert dataset["train"].features["label"] == ClassLabel(names=names)
    # What was found once is found again, also as strings.
    again = [names[index] for index in ids]
    renamed = head(*names)
    if label_names(renamed) is not None:
        assert encode_labels(of(again), "label", renamed).dataset["train"]["label"][:] == ids


@pytest.mark.parametrize(
    ("config", "values", "classes", "names"),
    [
        (head(*NLI), ["neutral"], None, NLI),
        (head(3), ["b", "a"], None, ["a", "b", "LABEL_2"]),
        (head(3), [0, 1], ["z", "a"], ["z", "a", "LABEL_2"]),
        (head(3), [0, 1], None, ["0", "1", "2"]),
        (None, ["b", "a"], None, ["a", "b"]),
        (None, [0, 2], None, ["0", "1", "2"]),
        (None, [0], ["z", "a"], ["z", "a"]),
    ],
)
def test_names_that_a_head_gets(config, values, classes, names):
    """A head without names gets those of the data, in their order and as many as it has."""
    assert encode_labels(of(values, classes), "label", config).names == names


# name -> (head, labels of train, names of a ClassLabel or None, message)
WRONG = {
    "unknown name": (head("pos", "neg"), ["pos", "bad"], None, "row 1: label 'bad' .*; the head's labels are pos, neg"),
    "id of none": (head("pos", "neg"), [0, 2], None, "row 1: label 2 .*; the head's labels are pos, neg"),
    "id of none, no names": (head(2), [1, 0, 2], None, "row 2: label 2 .*; the head has 2 labels, 0 to 1"),
    "below 0": (head(2), [0, -1], None, "row 1: label -1 .*; the head has 2 labels, 0 to 1"),
    "too many names": (head(2), ["a", "b", "c"], None, "row 2: label 'c' .*; the head has 2 labels, 0 to 1"),
    "other names altogether": (head("pos", "neg"), [1, 0], ["spam", "ham"], "row 0: label 'ham' .* are pos, neg"),
    "case that is ambiguous": (head("A", "a"), ["A", "Ä"], None, "row 1: label 'Ä' .* are A, a"),
    "empty": (head("pos", "neg"), ["pos", ""], None, "row 1: no label in column 'label'; the head's labels are pos, neg"),
    "blank": (head("pos", "neg"), ["pos", "  "], None, "row 1: no label"),
    "none": (head("pos", "neg"), ["pos", None], None, "row 1: no label"),
    "none among numbers": (head(2), [0, None], None, "row 1: no label in column 'label'; the head has 2 labels"),
    "withheld": (head(*NLI), [0, -1], NLI, "row 1: no label"),
    "no number": (head(2), [0.5, 1.0], None, "row 0: label 0.5"),
    "not a number": (head(2), [1.0, float("nan")], None, "row 1: no label"),
    "ids and names at once": (head("1", "0"), [0, 1], None, "0 is the id of the head's '1' and the name of its label 1; give"),
    "lists": (head("pos", "neg", problem_type=SINGLE), [["pos"], ["neg"]], None, r"row 0: \['pos'\] is not one label"),
    "several numbers": (head(2, problem_type=REGRESSION), [0], None, "regression of 2 numbers a row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_label_that_the_head_has_not_names_its_row(name):
    config, values, classes, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        encode_labels(of(values, classes), "label", config)


def test_every_split_is_read_by_the_same_names():
    dataset = encode_labels(of(["b", "a"], test=["a", "b"]), "label", head(2)).dataset
    assert dataset["test"]["label"][:] == [0, 1]
    with pytest.raises(UserError, match=r"split 'test', row 1: label 'c' in column 'label'; the head's labels are a, b"):
        encode_labels(of(["a", "b"], test=["a", "c"]), "label", head(2))
    with pytest.raises(UserError, match=r"split 'test', row 1: label 'c' in column 'label'; the head's labels are a, b"):
        encode_labels(of(["a", "b"], test=["a", "c"]), "label")


@pytest.mark.parametrize("size", [2, 3, 5, 10, 20])
def test_the_row_is_that_of_the_file(size, tmp_path):
    """A tenth of a file becomes validation, and rows are drawn from the rest: the numbers are still those of the file."""
    for empty in range(size):
        path = tmp_path / f"{empty}.csv"
        path.write_text("text,label\n" + "".join(f"x,{'' if row == empty else 'a'}\n" for row in range(size)))
        dataset = load_text_dataset(str(path))
        dataset["train"] = dataset["train"].shuffle(seed=1)
        with pytest.raises(UserError, match=f"row {empty}: no label"):
            encode_labels(dataset, "label", head("a", "b"))


def test_the_problem_type_is_one_of_three():
    config = head(2)
    config.problem_type = "ranking"
    with pytest.raises(UserError, match="problem_type: 'ranking' is unknown; known: single_label_classification, multi_label"):
        encode_labels(of([0]), "label", config)


def test_label2id_counts_where_id2label_says_nothing():
    config = BertConfig(num_labels=2)
    config.label2id = {"pos": 0, "neg": 1}
    assert label_names(config) == ["pos", "neg"]
    assert encode_labels(of(["neg", "pos"]), "label", config).dataset["train"]["label"][:] == [1, 0]
    assert label_names(BertConfig(num_labels=3)) is None
    assert label_names(head("0", "1")) is None and label_names(head("1", "0")) == ["1", "0"]


SEVERAL = {
    "names": (head("a", "b", "c", problem_type=MULTI), [["c", "A"], []], [[1, 0, 1], [0, 0, 0]]),
    "ids": (head("a", "b", "c", problem_type=MULTI), [[2], [0, 1]], [[0, 0, 1], [1, 1, 0]]),
    "a number for each": (head("a", "b", "c"), [[1, 0, 1], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]]),
    "a float for each": (head("a", "b"), [[1.0, 0.0]], [[1, 0]]),
    "a truth value for each": (head("a", "b"), [[True, False]], [[1, 0]]),
    "no names": (head(3), [["b"], ["a", "b"]], [[0, 1, 0], [1, 1, 0]]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels_a_row(name):
    config, values, expected = SEVERAL[name]
    dataset, names, problem_type = encode_labels(of(values), "label", config)
    assert dataset["train"]["label"][:] == expected and problem_type == MULTI
    assert dataset["train"].with_format("torch")["label"][:].dtype.is_floating_point and len(names) == config.num_labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"], "row 0: 'a' is not a list of labels, which multi_label_classification takes, in column 'label'; .* are a, b"),
        ([["a"], ["x"]], "row 1: label 'x' .* are a, b"),
        ([["a"], None], "row 1: no label"),
        ([[0.5, 1.0]], "row 0: label 0.5"),
    ],
)
def test_several_labels_that_cannot_be(values, message):
    with pytest.raises(UserError, match=message):
        encode_labels(of(values), "label", head("a", "b", problem_type=MULTI))


@pytest.mark.parametrize("values", [[2.5, 0.0], [3, 1], ["2.5", "-1e0"]])
def test_a_regression_takes_numbers(values):
    dataset, names, problem_type = encode_labels(of(values), "label", head(1))
    assert dataset["train"]["label"][:] == [float(value) for value in values]
    assert names == [] and problem_type == REGRESSION


@pytest.mark.parametrize(("value", "message"), [("high", "label 'high'"), ("", "no label"), ("inf", "label 'inf'")])
def test_a_regression_takes_nothing_else(value, message):
    with pytest.raises(UserError, match=f"row 1: {message} in column 'label'; the head is a regression, which takes numbers"):
        encode_labels(of(["1.5", value]), "label", head(1))


def test_tokenized_rows_and_tags_are_renumbered_by_name():
    tags = Features({"labels": [ClassLabel(names=["B", "O", "I"])]})
    rows = Dataset.from_dict({"labels": [[-100, 0, 1], [2, 1]]}, features=tags)
    assert [row["labels"] for row in labels_by_name(rows, head("O", "B", "I"))] == [[-100, 1, 0], [2, 0]]
    assert labels_by_name(rows, head("x", "y", "z")) is rows
    assert labels_by_name(rows, head(3)) is rows
    with pytest.raises(UserError, match=r"row 1: label 'I' in column 'labels'; the head's labels are O, B"):
        labels_by_name(rows, head("O", "B"))
