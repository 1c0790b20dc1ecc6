"""Text data sets from the standard library, from local files or from the Hub, brought to one form for training.

`columns_of` finds out what the columns mean, `labels.encode_labels` what the labels do; `tokenize_*` make model input of them.
"""

import glob
import gzip
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError
from ..utils.options import check_integers
from .docstrings import build_docstrings, build_texts

logger = logging.getLogger(__name__)

BUILT = {"stdlib-docstrings": build_docstrings, "stdlib-texts": build_texts}
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
SPLIT_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation", "validation_matched": "validation"}
SPLITS = ("train", "validation", "test")
ACCEPTED = (
    f"accepted are {', '.join(map(repr, BUILT))}, a folder written by DatasetDict.save_to_disk, a folder with a train file (and "
    f"validation, valid, val, dev or test files) or one file ending in {', '.join(READERS)} (.gz too), or a Hub data set id"
)
HEADERLESS_COLUMNS = ["label", "sentence1", "sentence2"]
VALIDATION_SHARE = 0.1
IS_CUT = "is_cut"  # a column while texts are tokenized

PAIRS = "sentence1+sentence2 premise+hypothesis question+sentence question1+question2 question+passage question+context"
TEXT_PAIRS = tuple(tuple(pair.split("+")) for pair in PAIRS.split())
TEXT_SINGLES = (("text",), ("sentence",), ("sentence1",), ("content",), ("question",))


def load_text_dataset(name: str, *, config: str | None = None, seed: int = 0) -> DatasetDict:
    """Load a text data set with the splits `train` and `validation`, and `test` where there is one.

    Args:
        name: `"stdlib-docstrings"`, `"stdlib-texts"`, a local folder or file, or a Hub id; see `ACCEPTED`. Tab-separated files
            are read the GLUE way, without quoting; one whose first line starts with an integer has no header line and gets the
            columns `label`, `sentence1` and, with a third column, `sentence2`. Text files give one row per line, in `text`.
        config: configuration of a Hub data set, such as `sst2` of `glue`.
        seed: which tenth of `train` becomes `validation` where the data has no such split.

    Raises:
        FileNotFoundError: there is no such file, folder or Hub data set, the Hub is unreachable, or no train file.
        UserError: the content cannot be read, two files claim one split, there is no train split, or `config` was given
            for data which is not on the Hub.
    """
    path = Path(name).expanduser()
    local = name in BUILT or path.exists()
    if local and config is not None:
        raise UserError(f"config={config!r}: {name} is not on the Hub, only Hub data sets have configurations")
    if name in BUILT:
        return BUILT[name](seed)
    if local:
        dataset = _read_folder(path) if path.is_dir() else DatasetDict({"train": _read_file(path)})
    else:
        dataset = _read_hub(name, config)
    return _with_standard_splits(dataset, name, seed)


def columns_of(
    dataset: DatasetDict, *, text: str | Sequence[str] | None = None, label: str | None = None, task: str
) -> tuple[list[str], str | None]:
    """Return the text columns (one, or two for sentence pairs) and the label column of a data set.

    Args:
        dataset: a column counts where every split has it.
        text: the text column or columns; None looks for common names such as `text` or `premise` and `hypothesis`.
        label: the label column; None looks for `label` and `labels`.
        task: "sequence-classification", or "causal-lm" or "masked-lm", which take one text column and no label (None).

    Raises:
        UserError: a column is missing or holds no strings, or the number of text columns is wrong.
    """
    labelled = task == "sequence-classification"
    candidates = (*TEXT_PAIRS, *TEXT_SINGLES) if labelled else TEXT_SINGLES
    if text is not None:
        candidates = ((text,) if isinstance(text, str) else tuple(text),)
        if not 1 <= len(candidates[0]) <= (2 if labelled else 1):
            raise UserError(f"text={text!r}: task {task} takes {'1 or 2 text columns' if labelled else '1 text column'}")
    text_columns = _first_present(dataset, "text", candidates)
    _check_strings(dataset, text_columns)
    labels = (("label",), ("labels",)) if label is None else ((label,),)
    return text_columns, _first_present(dataset, "label", labels)[0] if labelled else None


def text_columns_of(dataset: DatasetDict) -> list[str]:
    """Return the text columns of a data set whose labels do not matter, one, or two for pairs, by their usual names.

    Raises:
        UserError: there is none, or it holds no strings.
    """
    columns = _first_present(dataset, "text", (*TEXT_PAIRS, *TEXT_SINGLES))
    _check_strings(dataset, columns)
    return columns


def tokenize_classification(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, text_columns: Sequence[str], label_column: str, max_length: int
) -> DatasetDict:
    """Tokenize texts or text pairs to at most `max_length` tokens, unpadded; the label column becomes `labels`.

    How many were longer is said in one line.

    Returns:
        The same splits and rows with the tokenizer's columns (`input_ids`, `attention_mask`, ...) and `labels`.

    Raises:
        UserError: `max_length` is below 1, or a text is missing (names split, row and column).
    """
    check_integers(1, max_length=max_length)

    def tokenize(batch: dict) -> dict:
        texts = [batch[column] for column in text_columns]
        tokens = tokenizer(*texts, truncation=True, max_length=max_length)
        if tokens.encodings is None:  # a tokenizer in Python does not say what it has cut
            is_cut = [len(ids) > max_length for ids in tokenizer(*texts, verbose=False)["input_ids"]]
        else:
            is_cut = [bool(encoding.overflowing) for encoding in tokens.encodings]
        return {**tokens, "labels": batch[label_column], IS_CUT: is_cut}

    splits = DatasetDict({split: _map_texts(rows, split, text_columns, tokenize) for split, rows in dataset.items()})
    cut = sum(sum(rows[IS_CUT][:]) for rows in splits.values() if len(rows))
    if cut:
        rows = sum(map(len, splits.values()))
        logger.warning("max_length: %d of %d texts were longer than %d tokens and are cut", cut, rows, max_length)
    return splits.remove_columns(IS_CUT)


def tokenize_language_modeling(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, text_column: str, block_size: int
) -> DatasetDict:
    """Tokenize each split as one running text and cut it into blocks of `block_size` tokens.

    Rows follow each other without special tokens; the last, incomplete block of a split is dropped.

    Returns:
        Columns `input_ids`, `attention_mask` (all ones) and `labels` (a copy of `input_ids`: causal models shift them
        themselves, and a masking collator overwrites them).

    Raises:
        UserError: `block_size` is below 2, a text is missing, or a split is shorter than one block.
    """
    if block_size < 2:
        raise UserError(f"block_size={block_size}: must be at least 2 tokens, one to read and one to predict")
    return DatasetDict({split: _blocks(rows, split, tokenizer, text_column, block_size) for split, rows in dataset.items()})


def row_number(rows: Dataset, place: int) -> int:
    """Which row of its file a row is, counted from 0: rows that were drawn from a file, or shuffled, are at other places."""
    indices = rows._indices
    return place if indices is None else indices.column(0)[place].as_py()


def _read_folder(folder: Path) -> DatasetDict:
    if (folder / "dataset_dict.json").is_file():
        try:
            # Later maps write their caches next to the data, which a read-only folder refuses; data in memory has none.
            return load_from_disk(str(folder), keep_in_memory=not os.access(folder, os.W_OK))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{folder}: cannot be read as a data set that was saved to disk: {error}") from error
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.name.split(".")[0].lower()
        split = SPLIT_ALIASES.get(stem, stem)
        if not path.is_file() or split not in SPLITS or _suffix(path) not in READERS:
            continue
        if split in files:
            raise UserError(f"{folder}: both {files[split].name} and {path.name} are files of the split {split!r}; keep one")
        files[split] = path
    if "train" not in files:
        raise FileNotFoundError(f"{folder}: holds no train file; {ACCEPTED}")
    return DatasetDict({split: _read_file(files[split]) for split in SPLITS if split in files})


def _read_file(path: Path) -> Dataset:
    suffix = _suffix(path)
    if suffix not in READERS:
        raise UserError(f"{path}: cannot tell the format from the name; {ACCEPTED}")
    options = {}
    if suffix in (".csv", ".tsv"):
        options["keep_default_na"] = False  # "NA", "null" and "None" are texts here, not missing values
    if suffix == ".txt":
        options["keep_linebreaks"] = True  # a language model must see where lines end
    try:
        if suffix == ".tsv":
            options |= {"sep": "\t", "quoting": 3, "column_names": _headerless_columns(path)}
        return load_dataset(READERS[suffix], data_files=glob.escape(str(path)), split="train", **options)
    except UserError:
        raise
    except (DatasetGenerationError, ValueError, EOFError, gzip.BadGzipFile, StopIteration) as error:
        raise UserError(f"{path}: cannot be read as {suffix}: {error.__cause__ or str(error) or 'it is empty'}") from error


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _headerless_columns(path: Path) -> list[str] | None:
    """Return column names for a tab-separated file which starts with a data row, None where it has a header line."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        cells = file.readline().rstrip("\r\n").split("\t")
    if not cells[0].removeprefix("-").isdecimal():
        return None
    if not 2 <= len(cells) <= 3:
        raise UserError(f"{path}: {len(cells)} columns and no header line; without one, 2 or 3 are allowed: {HEADERLESS_COLUMNS}")
    return HEADERLESS_COLUMNS[: len(cells)]


def _read_hub(name: str, config: str | None) -> DatasetDict:
    # The Hub is slow to say that it has no such thing, so what can only be a path is told apart first.
    if name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or _suffix(Path(name)) in READERS:
        raise FileNotFoundError(f"{name}: no such file or folder; {ACCEPTED}")
    try:
        return load_dataset(name, config)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{name}: neither a local path nor reachable on the Hub ({error}); {ACCEPTED}") from error
    except (DatasetGenerationError, ValueError, RuntimeError) as error:  # no such configuration, or a script instead of data
        raise UserError(f"{name}: cannot be loaded from the Hub: {error.__cause__ or error}") from error


def _with_standard_splits(dataset: DatasetDict, name: str, seed: int) -> DatasetDict:
    splits = {SPLIT_ALIASES.get(split, split): rows for split, rows in dataset.items() if not _labels_hidden(name, split, rows)}
    if "train" not in splits:
        raise UserError(f"{name}: no train split, found {', '.join(dataset)}")
    if "validation" not in splits:
        if len(splits["train"]) < 2:
            raise UserError(f"{name}: {len(splits['train'])} row(s) in train, 2 are needed to split off a validation set")
        # As `train_test_split` draws them, which forgets where in the file rows were that stand side by side there.
        order = np.random.default_rng(seed).permutation(len(splits["train"]))
        count = math.ceil(VALIDATION_SHARE * len(order))
        parts = {"train": order[count:], "validation": order[:count]}
        splits |= {split: splits["train"]._select_with_indices_mapping(places) for split, places in parts.items()}
    return DatasetDict({split: splits[split] for split in SPLITS if split in splits})


def _labels_hidden(name: str, split: str, rows: Dataset) -> bool:
    """Tell whether a split's labels are withheld, which Hub data sets such as GLUE write as -1 in every row."""
    hidden = any(isinstance(rows.features[column], ClassLabel) and set(rows[column][:]) == {-1} for column in rows.features)
    if hidden:
        logger.warning("%s: leaving out the split %r, all of its labels are withheld (-1)", name, split)
    return hidden


def _check_strings(dataset: DatasetDict, columns: Sequence[str]) -> None:
    for split, rows in dataset.items():
        for column in columns:
            if rows.features[column] not in (Value("string"), Value("large_string")):
                raise UserError(f"split {split!r}: text column {column!r} must hold strings, found {rows.features[column]}")


def _first_present(dataset: DatasetDict, kind: str, candidates: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the first of the candidates of which every split has every column."""
    found = [name for name in dataset["train"].column_names if all(name in rows.column_names for rows in dataset.values())]
    for columns in candidates:
        if set(columns) <= set(found):
            return list(columns)
    needed = " or ".join("+".join(columns) for columns in candidates)
    raise UserError(f"no {kind} column: needed is {needed} in every split; found are {', '.join(found)}")


def _map_texts(rows: Dataset, split: str, text_columns: Sequence[str], tokenize: Callable[[dict], dict]) -> Dataset:
    """Replace all columns by those which `tokenize` makes of a batch, after checking that no text is missing."""
    for column in text_columns:
        if None in (texts := rows[column][:]):
            row = row_number(rows, texts.index(None))
            raise UserError(f"split {split!r}, row {row}: no text in column {column!r}; every row needs one")
    return rows.map(tokenize, batched=True, remove_columns=rows.column_names)


def _blocks(rows: Dataset, split: str, tokenizer: PreTrainedTokenizerBase, column: str, block_size: int) -> Dataset:
    def tokenize(batch: dict) -> dict:
        # verbose=False: a row longer than the model's limit is fine, it is cut into blocks.
        return {"input_ids": tokenizer(batch[column], add_special_tokens=False, verbose=False)["input_ids"]}

    # The mapped table keeps no gaps between rows, so its flattened chunks are the running text.
    chunks = _map_texts(rows, split, [column], tokenize).data.column("input_ids").chunks if len(rows) else []
    ids = np.concatenate([np.empty(0, dtype=np.int64), *(chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks)])
    if len(ids) < block_size:
        raise UserError(f"split {split!r}: {len(ids)} tokens are less than one block of block_size={block_size}")
    blocks = ids[: len(ids) // block_size * block_size].astype(np.int64).reshape(-1, block_size)
    return Dataset.from_dict({"input_ids": blocks, "attention_mask": np.ones_like(blocks, dtype=np.int8), "labels": blocks})
