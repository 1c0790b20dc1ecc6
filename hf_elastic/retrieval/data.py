"""Collections of documents in files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError

NAMES = ("corpus.jsonl", "corpus.jsonl.gz")  # in a BEIR folder


@dataclass(frozen=True)
class Document:
    """A document: `text` has the title in front of it, where there is one."""

    id: str
    text: str


def read_corpus(path: str | Path) -> Iterator[Document]:
    """The documents of a `.jsonl` or `.jsonl.gz` file with `_id`, `text` and perhaps `title`, or of a BEIR folder, one by one.

    Raises:
        UserError: there is no such file, it is not UTF-8 or not JSON, or an id is there twice; names the file and the line.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0])
    if not path.is_file():
        raise UserError(f"corpus: there is no file {path}")
    lines: dict[str, int] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line.decode("utf-8"))
                title, text = values.get("title", ""), values["text"]
                document = Document(str(values["_id"]), f"{title} {text}" if title else text)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: is not UTF-8 ({error.reason})") from error
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(f"{path}, line {number}: is no document with _id and text ({error})") from error
            if document.id in lines:
                raise UserError(f"{path}, line {number}: the id {document.id!r} is also that of line {lines[document.id]}")
            lines[document.id] = number
            yield document


def read_queries(path: str | Path) -> dict[str, str]:
    """The texts of queries by their ids, from `id<TAB>text` in a `.tsv` file.

    Raises:
        UserError: a line has not two columns.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    for row in rows:
        if len(row) != 2:
            raise UserError(f"{path}: {row!r} has not two columns")
    return dict(rows)
