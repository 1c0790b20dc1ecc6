"""Files and folders that are all there or not there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import UserError


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Where to write the file `path`: it, and what is written beside it, appear complete or not at all, `path` itself last."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        staged = Path(folder) / path.name
        yield staged
        beside = [file for file in sorted(Path(folder).iterdir()) if file != staged]
        for file in (*beside, staged):
            os.replace(file, path.with_name(file.name))


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


@contextmanager
def reading(path: str | os.PathLike, name: str, is_not: str) -> Iterator[None]:
    """Whatever is wrong with a JSON file of ours is one error.

    Args:
        path: the file.
        name: what is read.
        is_not: what to say of a file with another content.

    Raises:
        UserError: `OSError`, `KeyError`, `TypeError`, `AttributeError` or `ValueError` was raised.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read the {name} {path}: {error.strerror}") from error
    except KeyError as error:
        raise UserError(f"{path} {is_not}: it lacks the key {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} {is_not}: {error}") from error


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """The folder to write to.

    Raises:
        ValueError: it is a file, or it is not empty and `overwrite` is False.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"output_dir: {path} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"output_dir: {path} is not empty; add --overwrite to replace it, or choose another folder")
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
