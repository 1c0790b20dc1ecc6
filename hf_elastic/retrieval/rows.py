"""Rows of text files that may be larger than memory, plain or gzipped; every error names the file and the line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..core.errors import UserError


def bad_line(path: Path, number: int, what: str) -> UserError:
    """The error to raise for line `number` of a file, or entry of a JSON list, counted from 1."""
    return UserError(f"{path}, {'entry' if suffix_of(path) == '.json' else 'line'} {number}: {what}")


def some_of(names: Iterable[str]) -> str:
    """The first three of many names."""
    names = sorted(names)
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def suffix_of(path: Path) -> str:
    """How the name of a file ends, in lower case, without the `.gz` of a gzipped one."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file in UTF-8 and their numbers, without what ends them.

    Raises:
        UserError: it is in another encoding, or a gzipped file is damaged.
        OSError: it cannot be read.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if b"\0" in line:
                    raise bad_line(path, number, "holds a NUL character; the file must be in UTF-8, is it in UTF-16?")
                text = line.decode("utf-8")
                yield number, (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise bad_line(path, number, f"is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad_line(path, number + 1, f"the gzipped file is damaged or breaks off ({error})") from error


def read_cells(path: Path, *, quoted: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The tab-separated cells of every line that is not blank.

    Args:
        path: the file.
        quoted: whether cells may be in double quotes, as Python's csv module writes them.
    """
    if not quoted:
        yield from ((number, line.split("\t")) for number, line in read_lines(path) if line.strip())
        return
    reader = csv.reader((f"{line}\n" for _, line in read_lines(path)), delimiter="\t")
    try:
        yield from ((reader.line_num, cells) for cells in reader if any(cells))
    except csv.Error as error:
        raise bad_line(path, reader.line_num, f"cannot be read as tab-separated cells: {error}") from error


def read_objects(path: Path) -> Iterator[tuple[int, dict]]:
    """The JSON objects of a file: one a line, or of a file `.json` the members of its one list, numbered from 1.

    A file `.json` is read as a whole, and needs the memory for that; one of JSON lines is streamed.
    """
    if suffix_of(path) == ".json":
        try:
            rows = json.loads("\n".join(line for _, line in read_lines(path)))
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or lists too deep
            raise UserError(f"{path}: is no JSON: {error}") from error
        if not isinstance(rows, list):
            raise UserError(f"{path}: holds no JSON list of questions")
        numbered = enumerate(rows, 1)
    else:
        numbered = ((number, _parse(path, number, line)) for number, line in read_lines(path) if line.strip())
    for number, row in numbered:
        if not isinstance(row, dict):
            raise bad_line(path, number, f"is no JSON object, but {str(row)[:40]!r}")
        yield number, row


def _parse(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise bad_line(path, number, f"is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists too deep
        raise bad_line(path, number, f"is no JSON that can be read: {error}") from error
