"""Loading local data, finding its columns, encoding labels and tokenizing, on real files and a real tokenizer."""

import gzip
import json
import os
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_elastic.data import (
    check_labels,
    columns_of,
    encode_labels,
    load_text_dataset,
    tokenize_classification,
    tokenize_language_modeling,
)

ROWS = [{"text": f"sentence number {i}", "label": i % 2} for i in range(20)]
TASK = "text-classification"
DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
needs_data = pytest.mark.skipif(
    DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with glue/<task>/*.tsv and wikitext2/*.txt.gz"
)


@pytest.fixture(scope="module")
def tokenizer():
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator([row["text"] for row in ROWS], trainers.WordLevelTrainer(special_tokens=specials))
    raw.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
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


def test_stdlib_docstrings_by_name():
    dataset = load_text_dataset("stdlib-docstrings")
    assert columns_of(dataset, task=TASK) == (["text"], "label")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder", "a/b/c", "train.csv", "x/train.tsv.gz"])
def test_missing_path(name):
    with pytest.raises(
        FileNotFoundError, match="no such file or folder; accepted are 'stdlib-docstrings', 'stdlib-functions', a folder"
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
        ({"task": "fill-mask", "text": ["body", "body"]}, "task fill-mask takes 1 text column"),
        ({"task": TASK, "text": []}, "takes 1 or 2 text columns"),
        ({"task": "segmentation"}, "task='segmentation': must be one of .*causal-lm"),
    ):
        with pytest.raises(ValueError, match=message):
            columns_of(dataset, **arguments)
    with pytest.raises(ValueError, match="text column 'text' must hold strings, found"):
        columns_of(of(train={"text": [1], "label": [1]}), task=TASK)


@pytest.mark.parametrize("value", [2, -1, None])
def test_check_labels_out_of_range(value):
    check_labels(of(train={"label": [0, 1, 1]}), "label", 2)
    with pytest.raises(ValueError, match=f"split 'test', row 1: label {value!r} in column 'y' is out of range; 2 labels"):
        check_labels(of(train={"y": [0, 1]}, test={"y": [0, value]}), "y", 2)


@pytest.mark.parametrize("value", [1.0, "1", True])
def test_check_labels_of_another_type(value):
    with pytest.raises(ValueError, match=f"split 'train', row 0: label {value!r} in column 'y'"):
        check_labels(of(train={"y": [value]}), "y", 2)


def test_encode_string_labels():
    dataset = of(train={"label": ["b", "a", "b"]}, test={"label": ["a"]})
    encoded, names = encode_labels(dataset, "label")
    assert names == ["a", "b"] and encoded["train"]["label"][:] == [1, 0, 1] and encoded["test"]["label"][:] == [0]
    assert encode_labels(encoded, "label")[1] == names
    assert encode_labels(dataset, "label", names=["b", "c", "a"])[0]["train"]["label"][:] == [0, 2, 0]
    check_labels(encoded, "label", 2)


def test_encode_integer_and_bad_labels():
    dataset = of(train={"label": [0, 2]})
    encoded, names = encode_labels(dataset, "label")
    assert encoded is dataset and names == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"split 'test', row 1: label 'c' in column 'label' is not one of \['a', 'b'\]"):
        encode_labels(of(train={"label": ["a", "b"]}, test={"label": ["a", "c"]}), "label")
    with pytest.raises(ValueError, match="must be all integers or all strings"):
        encode_labels(of(train={"label": [0.5, 1.0]}), "label")


@pytest.mark.parametrize("label", ["label", "labels"])
def test_tokenize_classification(tokenizer, label):
    dataset = of(train={"a": ["sentence number 3", "number"], "b": ["4", "5 6 7 8"], label: [1, 0]})
    single = tokenize_classification(dataset, tokenizer, ["a"], label, 4)["train"]
    assert set(single.column_names) == {*tokenizer("x"), "labels"}
    assert [len(ids) for ids in single["input_ids"]] == [4, 3]
    assert single["labels"][:] == [1, 0]
    pair = tokenize_classification(dataset, tokenizer, ["a", "b"], label, 32)["train"]
    assert pair["input_ids"][0] == tokenizer("sentence number 3", "4")["input_ids"]


def test_tokenize_language_modeling(tokenizer):
    texts = [f"sentence number {i}" for i in range(7)]
    blocks = tokenize_language_modeling(of(train={"text": [*texts, ""]}), tokenizer, "text", 4)["train"]
    ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    assert [token for block in blocks["input_ids"] for token in block] == ids[:20]
    assert blocks["labels"][:] == blocks["input_ids"][:]
    assert blocks["attention_mask"][:] == [[1] * 4] * 5


def test_tokenize_bad_input(tokenizer):
    dataset = of(train={"text": ["a", None], "label": [0, 1]})
    with pytest.raises(ValueError, match="split 'train', row 1: no text in column 'text'"):
        tokenize_classification(dataset, tokenizer, ["text"], "label", 8)
    with pytest.raises(ValueError, match="split 'train', row 1: no text in column 'text'"):
        tokenize_language_modeling(dataset, tokenizer, "text", 8)
    with pytest.raises(ValueError, match="max_length must be an integer of at least 1, got 0"):
        tokenize_classification(dataset, tokenizer, ["text"], "label", 0)
    with pytest.raises(ValueError, match="block_size=1"):
        tokenize_language_modeling(dataset, tokenizer, "text", 1)
    with pytest.raises(ValueError, match="split 'train': 2 tokens are less than one block of block_size=8"):
        tokenize_language_modeling(of(train={"text": ["sentence number"]}), tokenizer, "text", 8)
    with pytest.raises(ValueError, match="split 'dev': 0 tokens"):
        tokenize_language_modeling(of(dev={"text": []}), tokenizer, "text", 8)


@needs_data
@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "rte", "sst2"])
def test_glue_files(task):
    dataset = load_text_dataset(str(Path(DATA_DIR) / "glue" / task))
    texts, label = columns_of(dataset, task=TASK)
    assert texts == (["sentence1"] if task in ("cola", "sst2") else ["sentence1", "sentence2"])
    encoded, names = encode_labels(dataset, label)
    assert len(names) == (3 if task == "mnli" else 2)
    check_labels(encoded, label, len(names))
    # The header line apart, each line is one row: nothing was lost to quotes.
    lines = (Path(DATA_DIR) / "glue" / task / "dev.tsv").read_text(encoding="utf-8").rstrip("\n").count("\n")
    assert len(dataset["validation"]) == lines


@needs_data
def test_wikitext_files(tokenizer):
    dataset = load_text_dataset(str(Path(DATA_DIR) / "wikitext2"))
    assert list(dataset) == ["train", "validation", "test"]
    texts, label = columns_of(dataset, task="causal-lm")
    assert (texts, label) == (["text"], None)
    small = DatasetDict({"validation": dataset["validation"].select(range(100))})
    assert len(tokenize_language_modeling(small, tokenizer, "text", 128)["validation"]) > 10
