"""Files and folders that are all there or not there, and options that may be one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file by way of a temporary sibling."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as staging:
        staged = Path(staging) / path.name
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, path)


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """The folder to write to.

    Raises:
        ValueError: it is a file, or it is not empty and `overwrite` is False.
    """
    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"output_dir: {path} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"output_dir: {path} is not empty; add --overwrite to replace it, or choose another folder")
    return folder


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A sibling folder that takes the place of `folder` when all went well, and vanishes when not."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_is_one_error(folder: str | Path) -> Iterator[None]:
    """Turn whatever a library raises when the disk of `folder` is full into one OSError that says so.

    Libraries written in other languages raise errors of their own with the system's words in them.

    Raises:
        OSError: (ENOSPC) the disk is full, or a limit on the size of files is reached.
    """
    try:
        yield
    except Exception as error:
        words = [os.strerror(code) for code in FULL]
        if getattr(error, "errno", None) not in FULL and not any(text in str(error) for text in words):
            raise
        raise OSError(errno.ENOSPC, f"the disk of {folder} is full; nothing was written") from error


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let write fill a temporary sibling, then move it over path, so that a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
