"""The zero-shot tasks: lm-eval task files of this package, over data files in a folder that is named at run time."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

TASKS = Path(__file__).parent / "tasks"
DATA_FOLDER = "zeroshot"


@dataclass(frozen=True)
class TaskFile:
    """A task and its data.

    Attributes:
        name: what lm-eval calls it.
        config: its lm-eval task file, with the path of the data filled in.
        data: the data, gzipped JSON lines.
        metric: the metric that a table shows, and that goes into an average: "acc_norm" where lm-eval's own task has it.
        digest: short hash of the task file and of the data.
    """

    name: str
    config: dict
    data: Path
    metric: str
    digest: str


def task_names() -> list[str]:
    """Names of the tasks that this package has files for."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def find_tasks(names: Sequence[str] | None, data_dir: str | Path) -> list[TaskFile]:
    """Find tasks and their data.

    Args:
        names: some of `task_names`, each once; None for all.
        data_dir: a folder with the data files, or with a folder `zeroshot` of them.

    Raises:
        ValueError: an unknown or repeated name, or a data file that lacks what its task needs.
        FileNotFoundError: a data file is missing.
    """
    known = task_names()
    names = known if names is None else list(names)
    if not names:
        raise ValueError(f"tasks: none given; known: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"tasks: {name!r} is unknown; known: {', '.join(known)}")
        if names.count(name) > 1:
            raise ValueError(f"tasks: {name} is given twice")
    return [_find_task(name, Path(data_dir)) for name in names]


def _find_task(name: str, data_dir: Path) -> TaskFile:
    text = (TASKS / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    file_name = config["dataset_kwargs"]["data_files"]["test"]
    folder = data_dir / DATA_FOLDER if (data_dir / DATA_FOLDER).is_dir() else data_dir
    data = (folder / file_name).absolute()
    if not data.is_file():
        raise FileNotFoundError(f"data_dir: {name} needs {file_name}, which is not in {folder}")
    metadata = config["metadata"]
    _check_columns(name, data, metadata["columns"])
    config["dataset_kwargs"]["data_files"]["test"] = str(data)
    digest = hashlib.sha256(text.encode() + data.read_bytes()).hexdigest()[:16]
    return TaskFile(name, config, data, metadata["metric"], digest)


def _check_columns(name: str, data: Path, columns: Iterable[str]) -> None:
    try:
        with gzip.open(data, "rt", encoding="utf-8") as lines:
            row = json.loads(lines.readline())
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"data_dir: {data} is not gzipped JSON lines: {error}") from error
    missing = [column for column in columns if not isinstance(row, dict) or column not in row]
    if missing:
        raise ValueError(f"data_dir: {name} needs the key {missing[0]}, which the first line of {data} does not have")
