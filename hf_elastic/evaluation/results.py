"""Results in a file that is whole after every task, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core.errors import UserError
from ..measure.latency import Latency
from ..utils.files import write_atomically
from .candidates import Candidate
from .harness import Score
from .suite import TaskFile


class Results:
    """Scores by size and task.

    Args:
        path: the file; what it holds is taken over.
        identity: what every score depends on, JSON by name. A file of another identity is refused.
        facts: recorded and not compared: versions and machine.
        overwrite: replace what the file holds, if that is an evaluation.

    Raises:
        UserError: the file is no such file, or holds results of something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, object], facts: Mapping[str, object], overwrite: bool = False):
        self.path = path
        self._data = {"identity": dict(identity), **facts, "target": None, "tasks": {}, "sizes": {}}
        if path.exists():
            self._take_over(overwrite)

    def _take_over(self, overwrite: bool) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            identity, _ = found["identity"], (found["tasks"], found["sizes"], found["target"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"output: {self.path} is there and holds no evaluation; choose another file") from error
        if not overwrite:
            self._compare(identity, self._data["identity"])
            self._data = found

    def _compare(self, there: Mapping, here: Mapping) -> None:
        different = [f"{name} was {there.get(name)!r}, is {value!r}" for name, value in here.items() if there.get(name) != value]
        if different:
            raise UserError(
                f"output: {self.path} holds other results ({'; '.join(different)}); add --overwrite, or choose another file"
            )

    def add_task(self, file: TaskFile, chance: float) -> None:
        """Note a task; raises UserError if the file has results of other data or of another prompt."""
        record = {"file": file.data.name, "digest": file.digest, "metric": file.metric, "chance": chance}
        self._compare(self._data["tasks"].get(file.name, record), record)
        self._data["tasks"][file.name] = record

    def add_size(self, candidate: Candidate) -> None:
        """Note a size; raises UserError if the file has another one of this name."""
        record = {"subnet": candidate.subnet, "parameters": candidate.parameters}
        there = self._data["sizes"].setdefault(candidate.name, {**record, "latency": None, "scores": {}})
        self._compare(
            {f"{candidate.name}, {name}": there[name] for name in record},
            {f"{candidate.name}, {name}": value for name, value in record.items()},
        )

    def score(self, size: str, task: str) -> Score | None:
        """What a size scored, or None."""
        found = self._data["sizes"][size]["scores"].get(task)
        return found and Score(**found)

    def put_score(self, size: str, task: str, score: Score) -> None:
        """Keep a score; it is on disk when this returns."""
        self._data["sizes"][size]["scores"][task] = asdict(score)
        self._save()

    def latencies(self, sizes: Sequence[str], workload: Mapping | None = None) -> dict[str, Latency] | None:
        """Latencies of these sizes if all come from one run, of this workload if one is given; else None."""
        found = {name: self._data["sizes"][name]["latency"] for name in sizes}
        if workload not in (None, self._data["target"]) or None in found.values():
            return None
        return {name: Latency.from_dict(latency) for name, latency in found.items()}

    def put_latencies(self, latencies: Mapping[str, Latency], workload: Mapping) -> None:
        """Keep the latencies of one run; those of other sizes, from another run, are dropped."""
        self._data["target"] = dict(workload)
        for name, size in self._data["sizes"].items():
            size["latency"] = latencies[name].to_dict() if name in latencies else None
        self._save()

    def chance(self, task: str) -> float:
        """Expected accuracy of a guess."""
        return self._data["tasks"][task]["chance"]

    def average_of_chance(self, tasks: Sequence[str]) -> float:
        """What guessing gets on average."""
        return sum(map(self.chance, tasks)) / len(tasks)

    def put_averages(self, tasks: Sequence[str]) -> None:
        """Write the macro average over these tasks to every size that has them all."""
        for size in self._data["sizes"].values():
            scores = [Score(**size["scores"][name]) for name in tasks if name in size["scores"]]
            if len(scores) == len(tasks):
                value, stderr = macro_average(scores)
                size["average"] = {"tasks": list(tasks), "value": value, "stderr": stderr}
        self._data["average_of_chance"] = {"tasks": list(tasks), "value": self.average_of_chance(tasks)}
        self._save()

    def _save(self) -> None:
        write_atomically(self.path, json.dumps(self._data, indent=1) + "\n")


def macro_average(scores: Sequence[Score]) -> tuple[float, float | None]:
    """Mean over tasks, each counting the same, and its standard error.

    Tasks are independent samples: the variance of a mean of k of them is the sum of their variances over k squared.

    Args:
        scores: one per task, at least one.

    Returns:
        The mean, and its standard error; None if a task has none.
    """
    value = sum(score.value for score in scores) / len(scores)
    errors = [score.stderr for score in scores]
    return value, None if None in errors else math.hypot(*errors) / len(scores)
