"""The folder that a command or an export fills: which it may be, and how it comes to hold all of the old or all of the new."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..core.errors import UserError
from .files import OBSOLETE, READY, WORKPLACE, clean_up, full_disk_is_one_error, release, settle, try_lock, usual_mode, workplace

RECORD = ".hf-elastic.json"  # in a folder that was filled: which files were written there
NEW = "new"  # in a temporary folder: what is being written
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux' renameat2


def check_place(option: str, path: str | Path, inputs: Mapping[str, object]) -> None:
    """Refuse an output that would replace what is read, or where somebody is.

    Symbolic links are resolved, in the output, on the way to an input and in an input's folder.

    Args:
        option: what the output is called.
        path: the output, a file or a folder.
        inputs: what is read, by the name of its option; what is no path of this machine is left out.

    Raises:
        UserError: it is, or contains, an input, the working directory or the home folder.
    """
    output = Path(os.path.realpath(path))
    if not output.exists():
        return
    own = {"the working directory": os.getcwd(), "the home folder": os.path.expanduser("~")}
    for name, place in {**inputs, **own}.items():
        real_paths = [Path(os.path.realpath(place))] if name in own else _real_paths(place)
        for real in real_paths:
            if any(parent.exists() and parent.samefile(output) for parent in (real, *real.parents)):
                what = "is" if real == output else "contains"
                raise UserError(f"{option}: {path} {what} {name} ({place}); choose another one")


def _real_paths(place: object) -> list[Path]:
    """Where an input is, and the links in it lead; nothing for what is no path."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # names on the Hub may be too long for a path, or no path at all
        real = Path(os.path.realpath(place))
        inside = real.iterdir() if real.is_dir() else ()
        return [real, *(Path(os.path.realpath(one)) for one in inside if one.is_symlink())] if real.exists() else []
    return []


def check_folder(
    path: str | Path,
    *,
    overwrite: bool,
    inputs: Mapping[str, object] | None = None,
    otherwise: str = "add --overwrite to replace it, or choose another folder",
) -> Path:
    """A folder to write files to, beside what is in it.

    Args:
        path: the folder.
        overwrite: whether it may hold something, of which files of the same names are replaced.
        inputs: as for `check_place`.
        otherwise: what to do about a folder that holds something.

    Raises:
        UserError: it is a file, may not be written to, or is not empty and `overwrite` is False; or as by `check_place`.
    """
    check_place("output_dir", path, inputs or {})
    folder = Path(os.path.realpath(path))
    if folder.is_dir():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"output_dir: {path} may not be written to")
        clean_up(folder)
        if not overwrite and _files_in(folder):
            raise UserError(f"output_dir: {path} is not empty; {otherwise}")
    elif folder.exists():
        raise UserError(f"output_dir: {path} is a file")
    return Path(path)


def check_output(path: str | Path, *, overwrite: bool, inputs: Mapping[str, object] | None = None) -> Path:
    """A folder to fill: all of it is replaced.

    Args:
        path: the folder.
        overwrite: whether what was written there before may be replaced.
        inputs: as for `check_place`.

    Raises:
        UserError: it holds what was not written there by hf_elastic; or as by `check_folder`.
    """
    check_folder(path, overwrite=overwrite, inputs=inputs)
    folder = Path(os.path.realpath(path))
    if foreign := sorted(_files_in(folder) - _recorded(folder)):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UserError(
            f"output_dir: {path} holds what hf-elastic has not written there ({', '.join(foreign[:3])}{more}), and none of it "
            "is deleted; choose another folder"
        )
    return Path(path)


def _files_in(folder: Path) -> set[str]:
    """Everything in a folder that is more than a folder of something, by its path there."""
    found = set()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if not name.startswith(WORKPLACE)]
        links = [name for name in folders if (here / name).is_symlink()]
        found |= {(here / name).relative_to(folder).as_posix() for name in (*files, *links)}
        if not folders and not files and here != folder:
            found.add(here.relative_to(folder).as_posix())
    return found


def _recorded(folder: Path) -> set[str]:
    """What was written to a folder, as it says itself."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return {RECORD, *json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]}
    return set()


@contextmanager
def filled(path: str | Path, *, overwrite: bool = False, inputs: Mapping[str, object] | None = None) -> Iterator[Path]:
    """A temporary folder whose files are those of the folder `path` when all went well, and vanish when not.

    It stands beside `path` and takes its place in one step. Where that cannot be (a mount point, a folder of somebody else or
    in one that may not be written to), it stands inside, and its files are moved one by one; whatever comes next in that folder
    goes on where a process was killed meanwhile. The folder keeps its mode. What was replaced is deleted last.

    Args:
        path: a new or empty folder, or one that was filled like this if `overwrite`; a link to a folder stays a link.
        overwrite: whether what was written there before is replaced.
        inputs: as for `check_place`.

    Raises:
        UserError: another process is at it; or as by `check_output`.
        OSError: the disk is full.
    """
    check_output(path, overwrite=overwrite, inputs=inputs)
    folder = Path(os.path.realpath(path))
    with claimed(path), full_disk_is_one_error(path):
        check_output(path, overwrite=overwrite, inputs=inputs)  # another process may have filled it meanwhile
        with workplace(_where_to_write(folder)) as place:
            (place / NEW).mkdir()
            yield place / NEW
            check_output(path, overwrite=overwrite, inputs=inputs)
            _write_record(place / NEW)
            _put_in_place(place, folder)


@contextmanager
def claimed(path: str | Path) -> Iterator[None]:
    """The folder `path` for this process alone; it is made, and vanishes if nothing was written to it.

    Raises:
        UserError: another process has it.
    """
    folder = Path(os.path.realpath(path))
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        lock = _lock(folder)
    except BlockingIOError as error:
        raise UserError(f"output_dir: another process is writing to {path}; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        release(lock)
        with contextlib.suppress(OSError):  # something is in it
            for one in missing:
                one.rmdir()


def _lock(folder: Path) -> int | None:
    """Make and lock a folder that another process may be exchanging or removing."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder)
        with contextlib.suppress(FileNotFoundError):
            if lock is None or os.path.samestat(os.fstat(lock), folder.stat()):
                return lock
        release(lock)


@contextmanager
def added(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` together when all went well, `config.json` last; others stay."""
    folder = Path(os.path.realpath(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with workplace(folder) as place:
        (place / NEW).mkdir()
        yield place / NEW
        (place / NEW).rename(place / READY)
        settle(place)


def _where_to_write(folder: Path) -> Path:
    """Beside a folder if it can be exchanged, else inside it."""
    if not hasattr(os, "geteuid") or os.path.ismount(folder) or folder.stat().st_uid != os.geteuid():
        return folder
    return folder.parent if os.access(folder.parent, os.W_OK | os.X_OK) else folder


def _write_record(new: Path) -> None:
    """Note what was written; all of it may be read by those who may read a new file here."""
    for empty in [new / name for name in _files_in(new) if (new / name).is_dir()]:
        empty.rmdir()
    files = sorted(_files_in(new))
    (new / RECORD).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    mode = usual_mode(new)
    for name in files:
        (new / name).chmod(mode)


def _put_in_place(place: Path, folder: Path) -> None:
    """Make the files of `place / NEW` those of `folder`."""
    inside = place.parent == folder
    if not inside and _exchange(place / NEW, folder):
        return
    with nullcontext(place) if inside else workplace(folder) as inner:
        if not inside:
            shutil.move(place / NEW, inner / NEW)
        obsolete = sorted(_recorded(folder) - _files_in(inner / NEW))
        (inner / OBSOLETE).write_text(json.dumps(obsolete), encoding="utf-8")
        (inner / NEW).rename(inner / READY)
        settle(inner)


def _exchange(new: Path, folder: Path) -> bool:
    """Let two folders change places in one step; over an empty one a plain rename does it. False where neither can be."""
    before = folder.stat()
    new.chmod(before.st_mode & 0o7777)
    with contextlib.suppress(OSError):
        os.chown(new, -1, before.st_gid)
    try:
        os.rename(new, folder)
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            return False
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    return exchange is not None and exchange(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(folder), RENAME_EXCHANGE) == 0
