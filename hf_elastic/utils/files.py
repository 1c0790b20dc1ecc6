"""Files that are all there or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and what a killed process leaves stays
    fcntl = None

WORKPLACE = ".hf-elastic-"  # how the names of temporary folders begin
# In one of them: what is complete and being moved to the folder around it, and a list of the files there that go then.
READY, OBSOLETE = "ready", "obsolete.json"


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Where to write the file `path`: it, and what is written beside it, appear complete or not at all, `path` itself last.

    Of a symbolic link the file that it leads to is replaced. A file that is replaced keeps its mode.

    Raises:
        UserError: it is there and no file, such as a folder or a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file, and is not replaced by one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with workplace(path.parent) as place:
        yield place / path.name
        move_files(place, path.parent, last=path.name)


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


@contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, which this process has locked; what killed processes left beside it is cleaned up."""
    clean_up(parent)
    while True:
        place = Path(tempfile.mkdtemp(prefix=WORKPLACE, dir=parent))
        try:
            lock = try_lock(place)
        except BlockingIOError:
            continue  # another process has found it before it was locked, and is cleaning it up
        if place.exists():
            break  # else that has cleaned it up already
        release(lock)
    try:
        yield place
    finally:
        if not (place / READY).exists():  # Ctrl-C while it is moved: the next process goes on
            shutil.rmtree(place, ignore_errors=True)
        release(lock)


def clean_up(parent: Path) -> None:
    """Delete the temporary folders of killed processes in a folder; what was complete in them is moved to its place first."""
    for place in parent.glob(f"{WORKPLACE}*"):
        lock = None
        with contextlib.suppress(BlockingIOError):
            lock = try_lock(place)
        if lock is None or not place.is_dir() or place.is_symlink():
            release(lock)
            continue
        try:
            settle(place)
            shutil.rmtree(place, ignore_errors=True)
        finally:
            release(lock)


def settle(place: Path) -> None:
    """Move what is complete in a temporary folder to the folder around it, and delete what it replaces; may be done again."""
    if not (place / READY).is_dir():
        return
    obsolete = place / OBSOLETE
    names = json.loads(obsolete.read_text(encoding="utf-8")) if obsolete.exists() else []
    move_files(place / READY, place.parent, last="config.json")
    for name in names:
        (place.parent / name).unlink(missing_ok=True)
    for folder in sorted({parent for name in names for parent in Path(name).parents[:-1]}, reverse=True):
        with contextlib.suppress(OSError):  # it holds something else
            (place.parent / folder).rmdir()
    shutil.rmtree(place / READY)


def move_files(source: Path, folder: Path, last: str) -> None:
    """Move all files below a folder to another one on the same disk, one by one, that of the name `last` at the end."""
    mode = usual_mode(source)
    for path in sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: (path.name == last, path)):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(target.stat().st_mode & 0o7777 if target.is_file() else mode)
        os.replace(path, target)


def try_lock(folder: Path) -> int | None:
    """Lock a folder until `release`, or until this process ends; None where it cannot be locked.

    Raises:
        BlockingIOError: another process has it.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def release(lock: int | None) -> None:
    """Unlock what `try_lock` has locked."""
    if lock is not None:
        os.close(lock)


def usual_mode(folder: Path) -> int:
    """The mode of a new file here; safetensors writes files that only their owner may read."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o7777
    probe.unlink()
    return mode


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


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_is_one_error(folder: str | Path, left: str = "nothing was written") -> Iterator[None]:
    """Turn whatever a library raises when the disk of `folder` is full into one OSError that says so, and what is left there.

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
        raise OSError(errno.ENOSPC, f"the disk of {folder} is full; {left}") from error
