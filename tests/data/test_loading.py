"""Loading local data, finding its columns and encoding labels, on real files."""

import gzip
import json
import os
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertConfig

from hf_elastic.core.errors import UserError
from hf_elastic.data import columns_of, encode_labels, load_text_dataset, loading
from hf_elastic.data.labels import SINGLE

pytestmark = pytest.mark.one_lane

ROWS = [{"text": f"sentence number {i}", "label": i % 2} for i in range(20)]
TASK = "sequence-classification"
DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
needs_data = pytest.mark.skipif(
    DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with glue/<task>/*.tsv and wikitext2/*.txt.gz"
)


def of(**splits):
    return DatasetDict({split: Dataset.from_dict(columns) for split, columns in splits.items()})


def save(path: Path, rows: list[dict]) -> None:
    """Write rows in the format that the name of the path asks for."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
        return
    sep = "\t" if suffix == ".tsv" else ","
    text = {
        ".json": lambda: json.dumps(rows),
        ".jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows),
        ".txt": lambda: "".join(row["text"] + "\n" for row in rows),
    }.get(suffix, lambda: "".join(sep.join(map(str, row)) + "\n" for row in (rows[0].keys(), *(row.values() for row in rows))))()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_folder_of_split_files(tmp_path, suffix):
    save(tmp_path / f"train.{suffix}", ROWS)
    save(tmp_path / f"dev.{suffix}", ROWS[:3])
    save(tmp_path / f"test.{suffix}", ROWS[:4])
    (tmp_path / "README.md").write_text("not data")
    dataset = load_text_dataset(str(tmp_path))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 20, "validation": 3, "test": 4}
    assert list(dataset["train"]) == ROWS


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz", "li[1]*s.txt"])
def test_single_text_file_keeps_lines_and_gives_a_tenth_to_validation(tmp_path, name):
    save(tmp_path / name, ROWS)
    dataset = load_text_dataset(str(tmp_path / name))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 18, "validation": 2}
    assert sorted(text for rows in dataset.values() for text in rows["text"]) == sorted(row["text"] + "\n" for row in ROWS)
    assert load_text_dataset(str(tmp_path / name))["validation"][:] == dataset["validation"][:]


def test_tsv_keeps_quotes_and_texts_which_look_missing(tmp_path):
    lines = ['label\tsentence1\tsentence2\n1\t"an opened quote\tNA\n', "0\tnull\tNone\n"]
    (tmp_path / "train.tsv").write_text("".join(lines))
    (tmp_path / "validation.tsv").write_text("".join(lines))
    assert list(load_text_dataset(str(tmp_path))["train"]) == [
        {"label": 1, "sentence1": '"an opened quote', "sentence2": "NA"},
        {"label": 0, "sentence1": "null", "sentence2": "None"},
    ]


@pytest.mark.parametrize("columns", [2, 3])
def test_tsv_without_header(tmp_path, columns):
    line = "\t".join(["0", "first text", "second text"][:columns]) + "\n"
    (tmp_path / "train.tsv").write_text(line * 4)
    dataset = load_text_dataset(str(tmp_path / "train.tsv"))
    assert dataset["train"].column_names == ["label", "sentence1", "sentence2"][:columns]
    assert sum(map(len, dataset.values())) == 4


def test_tsv_without_header_and_too_many_columns(tmp_path):
    (tmp_path / "train.tsv").write_text("0\ta\tb\tc\n")
    with pytest.raises(ValueError, match="4 columns and no header line; without one, 2 or 3"):
        load_text_dataset(str(tmp_path / "train.tsv"))


def test_saved_dataset_dict(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "valid": Dataset.from_list(ROWS[:5])}).save_to_disk(tmp_path / "saved")
    dataset = load_text_dataset(str(tmp_path / "saved"))
    assert list(dataset) == ["train", "validation"]
    assert list(dataset["validation"]) == ROWS[:5]


def test_split_with_withheld_labels_is_left_out(tmp_path, caplog):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    hidden = Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, features=features)
    train = Dataset.from_list(ROWS, features=features)
    DatasetDict({"train": train, "validation": train, "test": hidden}).save_to_disk(tmp_path / "saved")
    assert list(load_text_dataset(str(tmp_path / "saved"))) == ["train", "validation"]
    assert "leaving out the split 'test'" in caplog.text


def test_stdlib_docstrings_by_name(monkeypatch):
    made = lambda seed: of(train={"text": ["a"]}, validation={"text": [str(seed)]})  # noqa: E731
    monkeypatch.setitem(loading.BUILT, "stdlib-docstrings", made)
    assert load_text_dataset("stdlib-docstrings", seed=7)["validation"]["text"][:] == ["7"]


@pytest.mark.parametrize("name", ["~/no-such-folder", "a/b/c", "train.csv"])
def test_missing_path(name):
    with pytest.raises(
        FileNotFoundError, match="no such file or folder; accepted are 'stdlib-docstrings', 'stdlib-texts', a folder"
    ) as error:
        load_text_dataset(name)
    assert name in str(error.value)


def test_unreachable_hub_id(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no-such-owner/no-such-data: neither a local path nor reachable on the Hub"):
        load_text_dataset("no-such-owner/no-such-data", config="plain")


def test_bad_folders_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no train file"):
        load_text_dataset(str(tmp_path))
    with pytest.raises(ValueError, match="config='sst2'"):
        load_text_dataset(str(tmp_path), config="sst2")
    (tmp_path / "data.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"data\.xlsx: cannot tell the format"):
        load_text_dataset(str(tmp_path / "data.xlsx"))
    (tmp_path / "broken.tsv").write_text("label\ttext\n1\ta\n1\ta\tb\tc\n")
    with pytest.raises(ValueError, match=r"broken\.tsv: cannot be read as \.tsv: .*Expected 2 fields in line 3, saw 4"):
        load_text_dataset(str(tmp_path / "broken.tsv"))
    (tmp_path / "latin.tsv").write_bytes(b"label\ttext\n1\t\xff\n")
    with pytest.raises(UserError, match=r"latin\.tsv: cannot be read as \.tsv: 'utf-8' codec can't decode byte 0xff"):
        load_text_dataset(str(tmp_path / "latin.tsv"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: cannot be read as \.jsonl: it is empty"):
        load_text_dataset(str(tmp_path / "empty.jsonl"))
    (tmp_path / "one.txt").write_text("one line")
    with pytest.raises(ValueError, match=r"1 row\(s\) in train, 2 are needed"):
        load_text_dataset(str(tmp_path / "one.txt"))
    for name in ("train.csv", "dev.csv", "valid.csv"):
        save(tmp_path / name, ROWS)
    with pytest.raises(ValueError, match=r"both dev\.csv and valid\.csv are files of the split 'validation'"):
        load_text_dataset(str(tmp_path))
    of(validation={"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="no train split, found validation"):
        load_text_dataset(str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="saved: cannot be read as a data set that was saved to disk"):
        load_text_dataset(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        (["idx", "label", "sentence"], ["sentence"]),
        (["label", "sentence1"], ["sentence1"]),
        (["sentence1", "label", "sentence2"], ["sentence1", "sentence2"]),
        (["hypothesis", "premise", "label"], ["premise", "hypothesis"]),
        (["question", "sentence", "label"], ["question", "sentence"]),
        (["text", "label"], ["text"]),
    ],
)
def test_columns_found_by_name(columns, texts):
    dataset = of(train={column: ["x"] for column in columns})
    assert columns_of(dataset, task=TASK) == (texts, "label")


def test_columns_given_and_for_language_modeling():
    dataset = of(train={"body": ["x"], "title": ["y"], "kind": [1], "text": ["z"]})
    assert columns_of(dataset, text=["title", "body"], label="kind", task=TASK) == (["title", "body"], "kind")
    assert columns_of(dataset, text="body", label="kind", task=TASK) == (["body"], "kind")
    assert columns_of(dataset, task="causal-lm") == (["text"], None)


def test_columns_missing_or_wrong():
    dataset = of(train={"body": ["x"], "kind": [1]}, test={"body": ["x"]})
    for arguments, message in (
        ({"task": TASK}, r"no text column: needed is sentence1\+sentence2 or .* or text or .*; found are body"),
        ({"task": TASK, "text": "titel"}, "no text column: needed is titel in every split; found are body"),
        ({"task": TASK, "text": "body"}, "no label column: needed is label or labels in every split; found are body"),
        ({"task": TASK, "text": "body", "label": "kind"}, "no label column: needed is kind in every split"),
        ({"task": "masked-lm", "text": ["body", "body"]}, "task masked-lm takes 1 text column"),
        ({"task": TASK, "text": []}, "takes 1 or 2 text columns"),
    ):
        with pytest.raises(ValueError, match=message):
            columns_of(dataset, **arguments)
    with pytest.raises(ValueError, match="text column 'text' must hold strings, found"):
        columns_of(of(train={"text": [1], "label": [1]}), task=TASK)


@needs_data
@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "rte", "sst2"])
def test_glue_files(task):
    dataset = load_text_dataset(str(Path(DATA_DIR) / "glue" / task))
    texts, label = columns_of(dataset, task=TASK)
    assert texts == (["sentence1"] if task in ("cola", "sst2") else ["sentence1", "sentence2"])
    encoded, names, problem_type = encode_labels(dataset, label, BertConfig(num_labels=3 if task == "mnli" else 2))
    assert names == sorted(names) and problem_type == SINGLE
    assert {value for rows in encoded.values() for value in rows[label]} == set(range(len(names)))
    # The header line apart, each line is one row: nothing was lost to quotes.
    lines = (Path(DATA_DIR) / "glue" / task / "dev.tsv").read_text(encoding="utf-8").rstrip("\n").count("\n")
    assert len(dataset["validation"]) == lines


@needs_data
def test_wikitext_files():
    dataset = load_text_dataset(str(Path(DATA_DIR) / "wikitext2"))
    assert list(dataset) == ["train", "validation", "test"]
    assert columns_of(dataset, task="causal-lm") == (["text"], None)
