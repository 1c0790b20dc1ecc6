"""Files and folders that are all there or not there, and options that may be one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml


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


def read_mapping(name: str, value: str | Mapping | None) -> dict | None:
    """An option that is a mapping in a recipe, and JSON, a JSON file or what a recipe would have on the command line.

    Raises:
        ValueError: it is none of them.
    """
    if value is None or isinstance(value, Mapping):
        return None if value is None else dict(value)
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{name}: {value!r} is not a mapping")
    # As a path, JSON may be longer than a file name can be.
    is_inline = isinstance(value, str) and _is_inline(value)
    text = value if is_inline or not Path(value).is_file() else Path(value).read_text(encoding="utf-8")
    try:
        loaded = json.loads(text)  # before YAML, where 1e-3 is text
    except json.JSONDecodeError as error:
        if not (loaded := _flow_mapping(text)):
            raise ValueError(f"{name}: {value!r} is neither a JSON mapping nor a JSON file ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{name}: {value!r} is not a mapping")
    return loaded


def read_name_or_mapping(name: str, value: str | Mapping | None) -> str | dict | None:
    """An option that may also be a name, which stays as it is; the rest as by `read_mapping`, which raises."""
    is_name = isinstance(value, str) and not _is_inline(value)
    return value if is_name else read_mapping(name, value)


def _is_inline(text: str) -> bool:
    return text.lstrip().startswith("{")


def _flow_mapping(text: str) -> dict | None:
    """A mapping as recipes write it, `{logits: 0.5}`, if the text is one."""
    if not _is_inline(text):
        return None
    with suppress(yaml.YAMLError, ValueError):  # ValueError: of dates that are none
        return yaml.safe_load(text)
    return None
