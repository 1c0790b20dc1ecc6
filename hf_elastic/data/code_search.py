"""A real search task made on the spot from Python's own standard library: which function does this docstring describe?

    python -m hf_elastic.data.code_search FOLDER

Writes a collection in BEIR's layout: a document is the code of a function without its docstring, a query is the first sentence
of a docstring, and the one right answer is its function. Files are divided: the queries are of some files, and `texts.txt` has
the sentences of the others, to train on. Documents are of all files.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..core.errors import UserError
from ..utils.folders import filled
from .docstrings import files_of_packages

QUERIES, DOCUMENTS = 400, 3000  # so many can be encoded in a moment on two cores
SHORTEST, LONGEST = 32, 400  # characters: of a sentence at least, of a function's code at most


class Pair(NamedTuple):
    """A function: where it is, the first sentence of its docstring, and its code on one line without it."""

    name: str
    sentence: str
    code: str


def pairs_in(root: Path) -> list[Pair]:
    """The functions with a docstring in every module and package under `root`; of those that say or do the same, the first."""
    found: dict[str, Pair] = {}
    codes: set[str] = set()
    for path in [*sorted(root.glob("*.py")), *files_of_packages(root)]:
        for pair in _pairs_of(path, path.relative_to(root).as_posix()):
            if pair.sentence not in found and pair.code not in codes:
                found[pair.sentence] = pair
                codes.add(pair.code)
    return list(found.values())


def _pairs_of(path: Path, file: str) -> Iterator[Pair]:
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        words = " ".join((ast.get_docstring(node, clean=False) or "").split())
        sentence = re.split(r"(?<=[.?!])\s", words, maxsplit=1)[0]
        if len(sentence) < SHORTEST:
            continue
        node.body, node.decorator_list = node.body[1:], []
        yield Pair(f"{file}:{node.lineno}:{node.name}", sentence, " ".join(ast.unparse(node).split())[:LONGEST])


def write_code_search(
    folder: str | Path, *, stdlib: Path | None = None, seed: int = 0, overwrite: bool = False
) -> dict[str, int]:
    """Write the collection; the same Python version and seed always give the same files.

    Args:
        folder: new or empty, unless `overwrite`.
        stdlib: where the packages are; default: those of this Python.
        seed: of the draws of files and functions.
        overwrite: replace what is in the folder.

    Returns:
        The numbers of documents, queries and texts.

    Raises:
        UserError: there is no function with a docstring, or the folder is not empty.
    """
    pairs = pairs_in(stdlib or Path(sysconfig.get_paths()["stdlib"]))
    if not pairs:
        raise UserError(f"{stdlib}: there is no function with a docstring in a package there")
    generator = random.Random(seed)
    files = sorted({pair.name.partition(":")[0] for pair in pairs})
    generator.shuffle(files)
    asked = set(files[: max(1, len(files) // 5)])
    mine = [pair for pair in pairs if pair.name.partition(":")[0] in asked]
    others = [pair for pair in pairs if pair.name.partition(":")[0] not in asked]
    mine = generator.sample(mine, min(QUERIES, len(mine)))
    documents = [*mine, *generator.sample(others, min(DOCUMENTS - len(mine), len(others)))]
    generator.shuffle(documents)
    rows = {
        "corpus.jsonl": [json.dumps({"_id": pair.name, "text": pair.code}) for pair in documents],
        "queries.jsonl": [json.dumps({"_id": f"q{number}", "text": pair.sentence}) for number, pair in enumerate(mine)],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *(f"q{number}\t{pair.name}\t1" for number, pair in enumerate(mine))],
        "texts.txt": [pair.sentence for pair in others],
    }
    with filled(folder, overwrite=overwrite) as place:
        for name, lines in rows.items():
            path = place / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"documents": len(documents), "queries": len(mine), "texts": len(others)}


if __name__ == "__main__":
    counts = write_code_search(sys.argv[1], overwrite=True)
    print(f"{sys.argv[1]}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
