"""What a search has found out so far, in memory or in a file that outlives an interrupted run."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..modeling_elastic import ElasticPreTrainedModel
from ..space import Subnet

FILE_NAME = "search.db"
SAMPLES_PER_TENSOR = 256
# Set by whoever loads or saves a config; they do not change what the model computes.
INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


class Store:
    """Values of subnets by kind ("quality", "latency"); each is on disk once `put` returns.

    Args:
        path: a file ending in .db, or a folder, made if missing, that gets one; None keeps everything in memory.
        identity: what the values depend on, JSON by name. A file of another identity is refused.

    Raises:
        ValueError: the path is no such file or folder, cannot be opened, or belongs to another search.
    """

    def __init__(self, path: str | os.PathLike | None, identity: Mapping[str, object]):
        self._path = path
        try:
            self._connection = sqlite3.connect(":memory:" if path is None else _file_of(path))
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"storage {path}: cannot be opened: {error}") from error
        try:
            self._claim({name: json.dumps(value, sort_keys=True) for name, value in identity.items()})
        except sqlite3.Error as error:
            self.close()
            raise ValueError(f"storage {path}: cannot be used: {error}") from error
        except ValueError:
            self.close()
            raise

    def _claim(self, identity: dict[str, str]) -> None:
        """Write the identity into a new file, or compare it with that of an old one, in one transaction."""
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                connection.execute("CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT)")
                connection.execute("CREATE TABLE found (subnet TEXT, kind TEXT, value TEXT, PRIMARY KEY (subnet, kind))")
                connection.executemany("INSERT INTO identity VALUES (?, ?)", identity.items())
                return
            if not {"identity", "found"} <= tables:
                raise ValueError(f"storage {self._path}: is no search storage: it has the tables {', '.join(sorted(tables))}")
            stored = dict(connection.execute("SELECT name, value FROM identity"))
        names = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
        if names:
            differences = "; ".join(f"{name} was {stored.get(name)}, is {identity.get(name)}" for name in names)
            raise ValueError(f"storage {self._path}: belongs to another search ({differences}); use another path or delete it")

    def get(self, subnet: Subnet, kind: str) -> dict | None:
        """What was put, or None."""
        query = "SELECT value FROM found WHERE subnet = ? AND kind = ?"
        row = self._connection.execute(query, (_key(subnet), kind)).fetchone()
        return row and json.loads(row[0])

    def put(self, kind: str, values: Mapping[Subnet, dict]) -> None:
        """Keep values of several subnets, all or none."""
        rows = [(_key(subnet), kind, json.dumps(value)) for subnet, value in values.items()]
        with self._connection as connection:
            connection.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)

    def subnets(self, kinds: Iterable[str]) -> Iterator[Subnet]:
        """The subnets that have a value of every kind, in the order in which they came."""
        kinds = set(kinds)
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT subnet FROM found WHERE kind IN ({marks}) GROUP BY subnet HAVING COUNT(*) = ? ORDER BY MIN(rowid)"
        for (key,) in self._connection.execute(query, (*kinds, len(kinds))).fetchall():
            yield Subnet(json.loads(key))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def _key(subnet: Subnet) -> str:
    return json.dumps(subnet.to_dict(), sort_keys=True)


def _file_of(path: str | os.PathLike) -> Path:
    path = Path(path)
    file = path if path.suffix == ".db" else path / FILE_NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def architecture_digest(model: ElasticPreTrainedModel) -> str:
    """A short hash of everything about a model that its sizes and their speed depend on: not its weights."""
    config = {key: value for key, value in model.config.base_config.to_dict().items() if key not in INCIDENTAL}
    facts = [type(model).__name__, config, model.config.layer_order, model.config.frozen, str(model.dtype)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_digest(model: ElasticPreTrainedModel) -> str:
    """A short hash of the architecture and of a sample of every weight, which any training step changes."""
    digest = hashlib.sha256(architecture_digest(model).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        # As float64 bytes: numpy has no bfloat16.
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)].to("cpu", torch.float64)
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def batches_digest(batches: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """A short hash of everything a model is evaluated on."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            tensor = batch[name].cpu()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
