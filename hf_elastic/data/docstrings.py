"""Real text-classification data sets made on the spot from Python's own standard library.

The task in one sentence: given a docstring whose package names were blanked out, say which standard-library package it
was written for. The classes are every top-level package with enough docstrings in enough files, so they follow from the
installed Python version and nothing is downloaded. Files, not docstrings, are divided over the splits, so the test
split asks about source files which training never saw. With comments and the code of functions as further texts the same
task has four times the rows, enough to tell sizes of a model apart.
"""

import ast
import io
import random
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ..core.errors import UserError

SPLIT_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
# Of the larger data set: what tells sizes apart is the number of rows that they are compared on.
LARGE_SHARES = {"train": 0.5, "validation": 0.25, "test": 0.25}
MIN_TEXTS = 400
MIN_LENGTH = 32  # of a text, in characters
PER_FILE = 8  # docstrings of a file in a sample
MASK = "package"
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


class Docstring(NamedTuple):
    """One docstring, comment or code: the package it comes from, its source file (relative to the library folder), its text."""

    package: str
    file: str
    text: str


def build_texts(seed: int = 0, *, stdlib: Path | None = None) -> DatasetDict:
    """Build the `stdlib-texts` data set: docstrings, comments and code; else as `build_docstrings`."""
    return build_docstrings(seed, stdlib=stdlib, min_docstrings=MIN_TEXTS, shares=LARGE_SHARES, with_code=True)


def build_docstrings(
    seed: int = 0,
    *,
    stdlib: Path | None = None,
    min_length: int = MIN_LENGTH,
    min_docstrings: int = 100,
    min_files: int = 4,
    shares: Mapping[str, float] = SPLIT_SHARES,
    with_code: bool = False,
) -> DatasetDict:
    """Build the `stdlib-docstrings` data set; the same Python version and seed always give the same rows.

    Args:
        seed: which source files go to which split, and the order of the rows.
        stdlib: folder of the standard library; None takes the running interpreter's.
        min_length: shortest docstring kept, in characters after white space is normalised.
        min_docstrings: docstrings a package needs, after duplicates are dropped, to become a class.
        min_files: source files with docstrings a package needs to become a class; at least 3, one for each split.
        shares: split -> its share of the docstrings.
        with_code: whether comments and the code of functions count as docstrings.

    Returns:
        Splits `train`, `validation` and `test` with columns `text` (str) and `label` (`ClassLabel`, sorted by name).

    Raises:
        FileNotFoundError: the library folder does not exist.
        ValueError: `min_files` is below 3, or fewer than two packages are large enough to be classes.
    """
    if min_files < len(shares):
        raise UserError(f"min_files={min_files}: must be at least {len(shares)}, one file for each split")
    root = Path(sysconfig.get_paths()["stdlib"]) if stdlib is None else Path(stdlib)
    found = collect_docstrings(root, min_length, with_code=with_code)
    names = large_packages(found, min_docstrings, min_files)
    if len(names) < 2:
        raise UserError(
            f"{root}: {len(names)} package(s) with at least {min_docstrings} docstrings in {min_files} files, 2 are needed; "
            "is this a Python installation with its .py files?"
        )
    kept = unique_docstrings(mask_packages([row for row in found if row.package in names], names))
    splits = assign_files(kept, seed, shares)
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return DatasetDict({split: _to_dataset(kept, splits, split, features, seed) for split in shares})


def collect_docstrings(root: Path, min_length: int = MIN_LENGTH, *, with_code: bool = False) -> list[Docstring]:
    """Return the module, class and function docstrings of every package under `root`, in the order of their file names.

    Args:
        root: folder of a standard library; single-file modules and test folders in it are left out.
        min_length: shortest docstring kept, in characters after white space is normalised.
        with_code: whether to return comments and the code of functions, too.

    Raises:
        FileNotFoundError: `root` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected a Python standard library with .py files")
    return [
        Docstring(path.relative_to(root).parts[0], path.relative_to(root).as_posix(), text)
        for path in files_of_packages(root)
        for text in _texts_in(path, with_code)
        if len(text) >= min_length
    ]


def sample_docstrings(count: int = 256, *, stdlib: Path | None = None) -> list[str]:
    """Some docstrings of the standard library, from few files, so that it takes a moment; the same Python gives the same ones.

    Args:
        count: how many at most.
        stdlib: folder of the standard library; None takes the running interpreter's.

    Raises:
        FileNotFoundError: there are no docstrings, as where Python comes without its `.py` files.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if stdlib is None else Path(stdlib)
    files = files_of_packages(root)
    random.Random(0).shuffle(files)
    found: dict[str, None] = {}
    for path in files:
        texts = [text for text in _texts_in(path, False) if len(text) >= MIN_LENGTH]
        found.update(dict.fromkeys(texts[:PER_FILE]))
        if len(found) >= count:
            break
    if not found:
        raise FileNotFoundError(f"{root}: no docstrings; is this a Python installation with its .py files?")
    return list(found)[:count]


def large_packages(docstrings: Iterable[Docstring], min_docstrings: int, min_files: int) -> list[str]:
    """Return the sorted names of the packages with at least `min_docstrings` distinct texts in `min_files` files."""
    unique = unique_docstrings(docstrings)
    texts = Counter(row.package for row in unique)
    files = Counter(package for package, _ in {(row.package, row.file) for row in unique})
    return sorted(name for name in texts if texts[name] >= min_docstrings and files[name] >= min_files)


def mask_packages(docstrings: Iterable[Docstring], names: Iterable[str]) -> list[Docstring]:
    """Replace every class name, with the dotted path after it, by the word `package`.

    All names are masked in all texts, so that neither the own name nor the absence of another one tells the class.
    """
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b(?:\.\w+)*", re.IGNORECASE)
    return [row._replace(text=pattern.sub(MASK, row.text)) for row in docstrings]


def unique_docstrings(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """Keep the first row of each text, and no row of a text which occurs in two packages."""
    rows = list(docstrings)
    owners: dict[str, set[str]] = {}
    for row in rows:
        owners.setdefault(row.text, set()).add(row.package)
    first = {row.text: row for row in reversed(rows) if len(owners[row.text]) == 1}
    return [row for row in rows if first.get(row.text) is row]


def assign_files(docstrings: Iterable[Docstring], seed: int, shares: Mapping[str, float] = SPLIT_SHARES) -> dict[str, str]:
    """Return the split of each source file; a package with at least 3 files has a file in each split.

    A package's largest file goes to `train`, since some packages keep most of their docstrings in one file. The others
    follow in seeded random order, each to the split which lacks the largest part of its share.
    """
    sizes: dict[str, Counter[str]] = {}
    for row in docstrings:
        sizes.setdefault(row.package, Counter())[row.file] += 1
    splits: dict[str, str] = {}
    for package in sorted(sizes):
        counts = sizes[package]
        largest = max(sorted(counts), key=lambda file: counts[file])
        others = sorted(counts.keys() - {largest})
        random.Random(f"{seed}:{package}").shuffle(others)
        filled = dict.fromkeys(shares, 0.0)
        for file in [largest, *others]:
            split = "train" if file == largest else min(filled, key=lambda name: filled[name] / shares[name])
            splits[file] = split
            filled[split] += counts[file]
    return splits


def files_of_packages(root: Path) -> list[Path]:
    """The source files of the packages under a folder, without their tests."""
    packages = sorted(init.parent for init in root.glob("*/__init__.py") if init.parent.name not in SKIPPED_FOLDERS)
    files = (path for package in packages for path in sorted(package.rglob("*.py")))
    return [path for path in files if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)]


def _texts_in(path: Path, with_code: bool) -> Iterator[str]:
    """Yield the docstrings of one source file, each on one line, empty ones as empty strings.

    With `with_code` its blocks of comments follow, and the code of its functions without docstrings.
    """
    source = path.read_bytes()  # not text: ast then honours the file's own encoding declaration
    nodes = list(ast.walk(ast.parse(source, filename=str(path))))
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield " ".join((ast.get_docstring(node, clean=False) or "").split())
    if not with_code:
        return
    yield from _comments_in(source)
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node, clean=False) is not None :]
            yield " ".join(" ".join(map(ast.unparse, body)).split())


def _comments_in(source: bytes) -> Iterator[str]:
    """Yield each block of comments on one line."""
    block: list[str] = []
    last = 0
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] > last + 1:
                yield " ".join(block)
                block = []
            block += token.string.lstrip("#!: ").split()
            last = token.start[0]
    yield " ".join(block)


def _to_dataset(rows: list[Docstring], splits: dict[str, str], split: str, features: Features, seed: int) -> Dataset:
    chosen = [row for row in rows if splits[row.file] == split]
    random.Random(f"{seed}:{split}").shuffle(chosen)
    columns = {"text": [row.text for row in chosen], "label": [row.package for row in chosen]}
    return Dataset.from_dict(columns, features=features)
