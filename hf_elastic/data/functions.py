"""Pairs of a function and a docstring, made on the spot from Python's own standard library.

The task in one sentence: given the name and the arguments of a function or class and a docstring whose mentions of that name
were blanked out, say whether the two belong together. Neither half tells the answer: every docstring and every function comes
once with its own partner and once with that of another, so a model has to compare them. Nothing is downloaded, and the
splits share no module: a package is in one of them as a whole.
"""

import ast
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ..core.errors import UserError
from .docstrings import SKIPPED_FOLDERS

SPLIT_SHARES = {"train": 0.5, "validation": 0.25, "test": 0.25}
LABELS = ["other", "own"]
MASK = "it"


class Function(NamedTuple):
    """A function or class: the top-level module it is in, its name and arguments in plain words, and its docstring."""

    module: str
    words: str
    docstring: str


def build_functions(seed: int = 0, *, stdlib: Path | None = None, min_length: int = 24) -> DatasetDict:
    """Build the `stdlib-functions` data set; the same Python version and seed always give the same rows.

    Args:
        seed: which partners are wrong, and the order of the rows.
        stdlib: folder of the standard library; None takes the running interpreter's.
        min_length: shortest docstring kept, in characters after white space is normalised.

    Returns:
        Splits `train`, `validation` and `test` with columns `sentence1` (the function), `sentence2` (the docstring) and `label`
        (`ClassLabel`: "other" or "own", each half of the rows but for namesakes).

    Raises:
        FileNotFoundError: the library folder does not exist.
        UserError: a split would have fewer than two functions.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if stdlib is None else Path(stdlib)
    functions = [one for one in collect_functions(root) if len(one.docstring) >= min_length]
    splits = assign_modules(functions)
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": ClassLabel(names=LABELS)})
    found = {}
    for split in SPLIT_SHARES:
        kept = [one for one in functions if splits[one.module] == split]
        if len(kept) < 2:
            raise UserError(f"{root}: too few functions with docstrings; is this a Python installation with its .py files?")
        rows = pair(kept, random.Random(f"{seed}:{split}"))
        found[split] = Dataset.from_dict(dict(zip(features, zip(*rows))), features=features)
    return DatasetDict(found)


def collect_functions(root: Path) -> list[Function]:
    """Return the functions and classes with a docstring of every module under `root`, each docstring once.

    Names with two underscores in front are left out: their docstrings say what Python says of them everywhere.

    Raises:
        FileNotFoundError: `root` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected a Python standard library with .py files")
    found: dict[str, Function] = {}
    for package in sorted(path for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()):
        for path in sorted(package.rglob("*.py")) if package.is_dir() else [package]:
            if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
                for function in _functions_in(path, package.stem):
                    found.setdefault(function.docstring, function)
    return list(found.values())


def assign_modules(functions: Iterable[Function]) -> dict[str, str]:
    """Return the split of each top-level module: largest first, each to the split that lacks the largest part of its share."""
    sizes = Counter(function.module for function in functions)
    splits, filled = {}, dict.fromkeys(SPLIT_SHARES, 0.0)
    for module in sorted(sizes, key=lambda name: (-sizes[name], name)):
        splits[module] = min(filled, key=lambda name: filled[name] / SPLIT_SHARES[name])
        filled[splits[module]] += sizes[module]
    return splits


def pair(functions: Sequence[Function], generator: random.Random) -> list[tuple[str, str, int]]:
    """Each function with its docstring, and with that of another whose words differ; rows in random order."""
    others = list(functions)
    generator.shuffle(others)
    rows = [(one.words, one.docstring, 1) for one in functions]
    rows += [(one.words, other.docstring, 0) for one, other in zip(others, others[1:] + others[:1]) if one.words != other.words]
    generator.shuffle(rows)
    return rows


def in_words(name: str) -> str:
    """A name as words: `getUser_name` is "get user name"."""
    return " ".join(re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).replace("_", " ").lower().split())


def _functions_in(path: Path, module: str) -> Iterator[Function]:
    # Bytes, not text: ast then honours the file's own encoding declaration.
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        docstring = " ".join((ast.get_docstring(node, clean=False) or "").split())
        words = in_words(node.name)
        if not isinstance(node, ast.ClassDef):
            given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            words += f" ( {', '.join(in_words(one.arg) for one in given if one.arg not in ('self', 'cls'))} )"
        if docstring and in_words(node.name):
            yield Function(module, words, re.sub(rf"\b{re.escape(node.name)}\b", MASK, docstring))
