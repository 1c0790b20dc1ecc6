"""Text files that options name: one text per line, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from ...core.errors import UserError


def read_texts(option: str, path: str | Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank.

    Args:
        option: which option named the file, for messages.
        path: a plain file, or one that ends in `.gz`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text, or holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {path}; give a text file with one text per line (.gz too)")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{option}: {path} is not a UTF-8 text file ({error})") from error
    if "\0" in text:
        raise UserError(f"{option}: {path} is a binary file, not text")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{option}: {path} holds no text")
    return lines
