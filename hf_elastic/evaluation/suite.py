"""The zero-shot tasks: lm-eval task files of this package, over data files in a folder that is named at run time."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..core.errors import UserError

TASKS = Path(__file__).parent / "tasks"
DATA_FOLDER = "zeroshot"
LISTS = ("choices", "context_options", "aliases")  # of texts; "gold" is the place of the right one, all else is text


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
        UserError: an unknown or repeated name, or a data file that lacks what its task needs.
        FileNotFoundError: a data file is missing.
    """
    known = task_names()
    names = known if names is None else list(names)
    if not names:
        raise UserError(f"tasks: none given; known: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(f"tasks: {name!r} is unknown; known: {', '.join(known)}")
        if names.count(name) > 1:
            raise UserError(f"tasks: {name} is given twice")
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
    _check_rows(name, data, metadata["columns"])
    config["dataset_kwargs"]["data_files"]["test"] = str(data)
    digest = hashlib.sha256(text.encode() + data.read_bytes()).hexdigest()[:16]
    return TaskFile(name, config, data, metadata["metric"], digest)


def _check_rows(name: str, data: Path, columns: Sequence[str]) -> None:
    """Raise UserError, naming the line, unless every item has what the task needs: lm-eval would fail in the middle."""
    try:
        with gzip.open(data, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                problem = _problem(json.loads(line), columns)
                if problem:
                    raise UserError(f"data_dir: {name} cannot use line {number} of {data}: {problem}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"data_dir: {data} is not gzipped JSON lines: {error}") from error


def _problem(row: object, columns: Sequence[str]) -> str | None:
    if not isinstance(row, dict):
        return "it is no JSON object"
    for column in columns:
        if column not in row:
            return f"it lacks the key {column!r}"
        value = row[column]
        if column == "gold":
            is_good = isinstance(value, int) and 0 <= value < min(len(row[name]) for name in columns if name in LISTS)
        elif column in LISTS:
            is_good = isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)
        else:
            is_good = isinstance(value, str)
        if not is_good:
            return f"its {column!r} is {value!r}"
    return None
