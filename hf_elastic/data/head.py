"""What the config of a head says of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..core.errors import UserError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
MOST_SHOWN = 20  # labels in a message


@dataclass(frozen=True)
class Head:
    """What a config says of labels.

    Attributes:
        size: how many labels; None where there is no head yet.
        names: in the order of the ids; None where nobody has named them.
        problem_type: None if the data decide between one label a row and several.
    """

    size: int | None = None
    names: list[str] | None = None
    problem_type: str | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> Head:
        """Read a config. Where `id2label` has defaults only, names in `label2id` count.

        Raises:
            UserError: the problem type is unknown, or a regression of several numbers.
        """
        size, problem_type = config.num_labels, config.problem_type
        if problem_type not in (None, SINGLE, MULTI, REGRESSION):
            raise UserError(f"problem_type: {problem_type!r} is unknown; known: {SINGLE}, {MULTI}, {REGRESSION}")
        if problem_type == REGRESSION and size != 1:
            raise UserError(f"problem_type: regression of {size} numbers a row is not prepared here; num_labels must be 1")
        if problem_type is None and size == 1:
            problem_type = REGRESSION
        return cls(size, label_names(config), problem_type)

    def __str__(self) -> str:
        if self.problem_type == REGRESSION:
            return "the head is a regression, which takes numbers"
        if self.names is None and self.size is None:
            return "labels are names, or integers from 0"
        if self.names is None:
            return f"the head has {self.size} labels, 0 to {self.size - 1}"
        more = f", ... ({len(self.names)} in all)" if len(self.names) > MOST_SHOWN else ""
        return f"the head's labels are {', '.join(self.names[:MOST_SHOWN])}{more}"


def label_names(config: PretrainedConfig) -> list[str] | None:
    """Names of the labels of a head, in the order of their ids; None where they are `LABEL_0`, `0` and so on."""
    ids = range(config.num_labels)
    by_id = [str(config.id2label.get(index, f"LABEL_{index}")) for index in ids]
    if _mean_something(by_id):
        return by_id
    names = {index: str(name) for name, index in (config.label2id or {}).items()}
    by_name = [names.get(index, f"LABEL_{index}") for index in ids]
    return by_name if _mean_something(by_name) else None


def _mean_something(names: Sequence[str]) -> bool:
    return any(name.upper() not in (f"LABEL_{index}", str(index)) for index, name in enumerate(names))
