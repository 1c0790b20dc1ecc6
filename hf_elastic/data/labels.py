"""What the labels of a data set are to a model's head: the names in its config decide, never the order in the data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Value
from transformers import PretrainedConfig

from ..core.errors import UserError
from .head import MULTI, REGRESSION, SINGLE, Head, label_names
from .loading import row_number

INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
NEW = "labels of the head"  # a column while it takes the place of another


class Labels(NamedTuple):
    """A data set whose labels are what a head takes.

    Attributes:
        dataset: the label column holds ids (`SINGLE`), a 0.0 or 1.0 for each of the head's labels (`MULTI`), or numbers.
        names: of the head's labels, in the order of their ids; none for numbers.
        problem_type: one of the three, as in a config.
    """

    dataset: DatasetDict
    names: list[str]
    problem_type: str


def encode_labels(dataset: DatasetDict, label_column: str, config: PretrainedConfig | None = None) -> Labels:
    """Turn labels into what a head takes.

    A label is looked up by its name in `id2label`: that of a `ClassLabel`, or a string, upper and lower case being the same where
    that is unambiguous. Integers, and strings of digits, are ids, unless they are names of the head. Where the head's names mean
    nothing (`LABEL_0`), or there is no head yet, the data set's own numbering holds: that of its `ClassLabel`, its integers, or
    its strings in alphabetical order. A head for several labels takes lists of any of these, or a 0 or 1 for every label.

    Args:
        dataset: every split is read; `train` says what there is where the head has no names.
        label_column: the column with the labels.
        config: of the head; None where there is none yet.

    Raises:
        UserError: a label is missing, or none of the head's; it names the split, the row (counted from 0 in its file), the label
            and the labels of the head. Or integers are ids and names of the head alike, and mean different labels.
    """
    head = Head() if config is None else Head.of(config)
    column = _Column(dataset, label_column, head)
    if head.problem_type == REGRESSION:
        return Labels(column.replaced(column.each(column.number), Value("float32")), [], REGRESSION)
    is_listed = any(isinstance(value, list) for _, _, value in column.items())
    problem_type = head.problem_type or (MULTI if is_listed else SINGLE)
    for split, row, value in column.items():
        if isinstance(value, list) != (problem_type == MULTI):
            takes = "a list of labels" if problem_type == MULTI else "one label"
            raise column.error(split, row, f"{value!r} is not {takes}, which {problem_type} takes,")
    return (_encode_several if problem_type == MULTI else _encode_one)(column, problem_type)


def labels_by_name(rows: Iterable[Mapping], config: PretrainedConfig) -> Iterable[Mapping]:
    """Tokenized rows with the head's labels, where the data set names its own (`ClassLabel`, of rows or of tokens).

    Rows without such names, and names of which the head has none, are left as they are; so is -100.

    Raises:
        UserError: the head has some of the names, and not that of a row.
    """
    names = label_names(config)
    features = rows.features if isinstance(rows, Dataset) and names is not None else {}
    column = next((name for name in ("labels", "label", "label_ids") if isinstance(_inner(features.get(name)), ClassLabel)), None)
    if column is None:
        return rows
    by_name, theirs = _lookup(names), _inner(features[column]).names
    ids = [by_name(name) for name in theirs]
    if ids == list(range(len(ids))) or not any(index is not None for index in ids):
        return rows

    def renumber(value, row: int):
        if isinstance(value, list):
            return [renumber(item, row) for item in value]
        if value is None or value < 0:
            return value
        if ids[value] is None:
            raise UserError(f"row {row}: label {theirs[value]!r} in column {column!r}; {Head(len(names), names)}")
        return ids[value]

    return [{**one, column: renumber(one[column], row)} for row, one in enumerate(rows)]


def _encode_one(column: _Column, problem_type: str) -> Labels:
    read, names = _reading(column, column.items())
    encoded = column.each(lambda split, row, value: read(value, split, row))
    unique = len(set(names)) == len(names)
    return Labels(column.replaced(encoded, ClassLabel(names=names) if unique else Value("int64")), names, problem_type)


def _encode_several(column: _Column, problem_type: str) -> Labels:
    rows = list(column.items())
    sizes = {len(value) for _, _, value in rows}
    size = column.head.size or max(sizes, default=0)
    if sizes == {size} and not column.is_named and all(item in (0, 1) for _, _, value in rows for item in value):
        names = column.head.names or [f"LABEL_{index}" for index in range(size)]
        return Labels(column.replaced(column.each(lambda s, r, value: [float(item) for item in value]), [Value("float32")]),
                      names, problem_type)  # fmt: skip
    read, names = _reading(column, [(split, row, item) for split, row, value in rows for item in value])

    def encode(split: str, row: int, value: list) -> list[float]:
        ids = {read(item, split, row) for item in value}
        return [float(index in ids) for index in range(len(names))]

    return Labels(column.replaced(column.each(encode), [Value("float32")]), names, problem_type)


def _reading(column: _Column, items: Iterable[tuple]) -> tuple[Callable, list[str]]:
    """How labels are looked up, `(label, split, row) -> id`, and the names of all."""
    items, head = list(items), column.head
    found = {item for _, _, item in items}
    in_words = column.is_named or any(isinstance(item, str) and not INTEGER.fullmatch(item) for item in found)
    by_id = _ids(head.size)
    default = head.names or [f"LABEL_{index}" for index in range(head.size or 0)]
    by_name, known = _lookup(default), head
    if head.names is None and not all(by_name(item) is not None for item in found):
        if in_words:  # the data's own numbering
            names = column.class_names or sorted({item for split, _, item in items if split == "train"})
            by_name, by_id = _lookup(names[: head.size]), _nothing
            known = Head(head.size, names) if len(names) <= (head.size or len(names)) else head
            default = [*names, *default[len(names) :]][: head.size]
        else:
            largest = max((by_id(item) or 0 for split, _, item in items if split == "train"), default=0)
            default, by_name = [str(index) for index in range(head.size or largest + 1)], _nothing
            by_id = _ids(len(default))
    readings = [read for read in (by_name, by_id) if all(read(item) is not None for item in found)]
    clash = next((item for item in found if len(readings) == 2 and by_name(item) != by_id(item)), None)
    if clash is not None and not any(isinstance(item, str) for item in found):
        raise UserError(
            f"column {column.name!r}: {clash!r} is the id of the head's {default[int(clash)]!r} and the name of its label "
            f"{by_name(clash)}; give strings or a ClassLabel where names are meant, or other names in the head's config"
        )
    read = readings[0] if readings else min((by_name, by_id), key=lambda one: sum(one(item) is None for item in found))

    def checked(item, split: str, row: int) -> int:
        found = read(item)
        if found is None:
            raise column.error(split, row, f"label {item!r}", known)
        return found

    return checked, default


def _ids(size: int | None) -> Callable:
    def by_id(item) -> int | None:
        if isinstance(item, str) and not INTEGER.fullmatch(item):
            return None
        index = int(float(item)) if float(item).is_integer() else -1
        return index if 0 <= index < (size or math.inf) else None

    return by_id


def _lookup(names: Sequence[str]) -> Callable:
    exact = _unambiguous({index: name for index, name in enumerate(names)})
    folded = _unambiguous({index: _fold(name) for index, name in enumerate(names)})

    def by_name(item) -> int | None:
        texts = [str(item), *([str(int(item))] if isinstance(item, float) and item.is_integer() else [])]
        found = [names.get(key) for text in texts for names, key in ((exact, text), (folded, _fold(text)))]
        return next((index for index in found if index is not None), None)

    return by_name


def _nothing(item) -> None:
    return None


def _fold(name: str) -> str:
    """The same of names that a user would not tell apart, and of what a reader of files makes of them: 01 is read as 1."""
    name = name.strip()
    return (name.lstrip("0") or "0") if name.isdecimal() else name.casefold()


def _unambiguous(names: Mapping[int, str]) -> dict[str, int]:
    counts = Counter(names.values())
    return {name: index for index, name in names.items() if counts[name] == 1}


class _Column:
    """The labels of all splits as plain values: names of a ClassLabel, strings, numbers, or lists of them.

    Raises:
        UserError: a label is missing, or of a type that is none.
    """

    def __init__(self, dataset: DatasetDict, name: str, head: Head):
        self.dataset, self.name, self.head = dataset, name, head
        self.values = {}
        for split, rows in dataset.items():
            feature = _inner(rows.features[name])
            names = feature.names if isinstance(feature, ClassLabel) else None
            self.values[split] = [self._plain(value, names, split, row) for row, value in enumerate(rows[name][:])]
        train = _inner(dataset["train"].features[name])
        self.class_names = list(train.names) if isinstance(train, ClassLabel) else None
        self.is_named = self.class_names is not None

    def _plain(self, value, names: list[str] | None, split: str, row: int, *, within: bool = False):
        if isinstance(value, (list, tuple)) and not within:
            return [self._plain(item, names, split, row, within=True) for item in value]
        if isinstance(value, bool):
            return int(value) if within else str(value)
        is_nan = isinstance(value, float) and math.isnan(value)
        is_missing = not value.strip() if isinstance(value, str) else value is None or is_nan
        if is_missing or (names is not None and value == -1):
            raise self.error(split, row, "no label")
        if names is not None and isinstance(value, int):
            if not 0 <= value < len(names):
                raise self.error(split, row, f"label {value!r}, for which the data set has no name,")
            return names[value]
        if isinstance(value, (int, float, str)):
            return value
        raise self.error(split, row, f"label {value!r}")

    def items(self) -> Iterable[tuple[str, int, object]]:
        """(split, row, label) of all."""
        return ((split, row, value) for split, values in self.values.items() for row, value in enumerate(values))

    def each(self, encode: Callable) -> dict[str, list]:
        """What `encode(split, row, label)` makes of every label, by split."""
        return {split: [encode(split, row, value) for row, value in enumerate(values)] for split, values in self.values.items()}

    def number(self, split: str, row: int, value) -> float:
        """A label of a regression."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(split, row, f"label {value!r}")
        return number

    def replaced(self, encoded: Mapping[str, list], feature) -> DatasetDict:
        """The data set with other labels."""
        return DatasetDict({split: _replace(rows, self.name, encoded[split], feature) for split, rows in self.dataset.items()})

    def error(self, split: str, row: int, problem: str, head: Head | None = None) -> UserError:
        """What is wrong with the label of a row."""
        place = row_number(self.dataset[split], row)
        return UserError(f"split {split!r}, row {place}: {problem} in column {self.name!r}; {head or self.head}")


def _inner(feature):
    """The feature of the items of a list."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", feature)  # List, LargeList, and Sequence before datasets 4


def _replace(rows: Dataset, column: str, values: list, feature) -> Dataset:
    if not len(rows) or (rows.features[column] == feature and rows[column][:] == values):
        return rows
    added = rows.add_column(NEW, values, feature=feature)  # first: rows without a column are no rows
    return added.remove_columns(column).rename_column(NEW, column)
