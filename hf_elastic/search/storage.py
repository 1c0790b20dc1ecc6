"""Opens the Optuna storage that a search keeps its results in: memory, a SQLite file, or a database server."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url

from ..core.errors import MissingPackageError, UserError

FILE_NAME = "search.db"
SERVERS = {"postgresql": "postgresql+psycopg"}
EXTRAS = {"postgresql": "postgres"}  # which extra of ours has the driver
ALLOWED = "a folder, a file ending in .db, sqlite:///FILE, or postgresql://USER@HOST/DATABASE"
LOCK_SECONDS = 60  # how long a process waits for another one that writes to the SQLite file
CONNECT_SECONDS = 10
CREATE_TRIES = 20


def open_storage(place: str | os.PathLike | None, stale_after: int) -> BaseStorage:
    """The storage at a place, with its tables.

    A relational storage is the only one of Optuna's that has heartbeats, by which the claims of a killed worker expire, so a file
    is SQLite and not Optuna's journal. Optuna does not recommend SQLite for many processes, for two reasons that are taken
    care of here: a process that finds the file locked waits for a minute; and every transaction locks the file when it begins,
    since SQLite has no lock on rows, and two processes could else both read that a trial is free, and both take it. A file on a
    network drive is not safe either way; several machines need a server.

    Args:
        place: None for memory; a path; or a URL.
        stale_after: seconds without a heartbeat after which a claim is no longer valid.

    Raises:
        ValueError: a place that is none of these, that cannot be opened or reached, or that holds something else.
        ImportError: the driver of a database server is not installed.
    """
    if place is None:
        return InMemoryStorage()
    url = _url_of(place)
    name = url.render_as_string(hide_password=True) if "://" in str(place) else str(place)
    is_file = url.get_backend_name() == "sqlite"
    if is_file:
        _check_file(name, url.database)
    options = {"connect_args": {"timeout": LOCK_SECONDS} if is_file else {"connect_timeout": CONNECT_SECONDS}}
    storage = _create(name, url, options, stale_after)
    if is_file:
        _lock_whole_transactions(storage)
    return storage


def _url_of(place: str | os.PathLike) -> URL:
    if not isinstance(place, str | os.PathLike):
        raise UserError(f"storage must be {ALLOWED}, got a {type(place).__name__}")
    if "://" not in str(place):
        path = Path(place)
        return URL.create("sqlite", database=str(path if path.suffix == ".db" else path / FILE_NAME))
    try:
        url = make_url(str(place))
    except (exc.ArgumentError, ValueError) as error:
        raise UserError(f"storage {place!r} is no URL; allowed: {ALLOWED}") from error
    if url.get_backend_name() not in ("sqlite", *SERVERS):
        raise UserError(f"storage {url.render_as_string(hide_password=True)}: unknown kind; allowed: {ALLOWED}")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise UserError(f"storage {place}: names no file; allowed: {ALLOWED}")
    return url.set(drivername=SERVERS.get(url.drivername, url.drivername))


def _check_file(name: str, file: str) -> None:
    """Raise ValueError unless the file is new, or a database with Optuna's tables."""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (OSError, sqlite3.OperationalError) as error:
        raise UserError(f"storage {name}: cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"storage {name}: cannot be used: {error}") from error
    if tables and not tables & {"studies", "trials"}:
        raise UserError(f"storage {name}: is no search storage: it has the tables {', '.join(sorted(tables))}")


def _create(name: str, url: URL, options: dict, stale_after: int) -> RDBStorage:
    """Connect, and make the tables; when another process makes them at the same moment, try again."""
    text = url.render_as_string(hide_password=False)
    beat = max(1, stale_after // 4)
    for attempt in range(1, CREATE_TRIES + 1):
        try:
            return RDBStorage(text, options, heartbeat_interval=beat, grace_period=stale_after)
        except ImportError as error:
            raise MissingPackageError(
                f"storage {name}: needs a driver: pip install 'hf-elastic[{EXTRAS[url.get_backend_name()]}]'"
            ) from error
        except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, AssertionError) as error:
            words = " ".join(str(error).split())
            is_race = any(sign in words for sign in ("already exists", "UNIQUE constraint", "duplicate key"))
            if not is_race or attempt == CREATE_TRIES:
                raise UserError(f"storage {name}: cannot be reached: {_first_sentence(words)}") from error
            time.sleep(0.1 * attempt)
    raise AssertionError("unreachable")


def _first_sentence(words: str) -> str:
    """Without what SQLAlchemy adds: the class in front, the statement and a link behind."""
    return words.partition(") ")[2].partition(" [SQL:")[0].partition(" (Background on")[0] or words


def _lock_whole_transactions(storage: RDBStorage) -> None:
    """The recipe of SQLAlchemy's documentation of SQLite for transactions that begin where they say they do."""
    engine = storage.engine

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection, record) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def lock(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections from before these listeners


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log line per trial, and no warning that one of Optuna's two interfaces for constraints is new, or old."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
