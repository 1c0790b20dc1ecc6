"""What a search can optimise, and the limits it can keep."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from ..core.errors import UserError
from ..measure.values import (
    ACCURACY,
    F1,
    FLOPS,
    LATENCY,
    LOSS,
    MATTHEWS,
    MEMORY,
    MSE,
    OUTPUT_CHANGE,
    PARAMETERS,
    PEARSON,
    PERPLEXITY,
    SPEARMAN,
)
from .proxies.table import PROXIES

DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class Objective:
    """One quantity that a search optimises.

    Attributes:
        name: key of the quantity in `Point.values`; also the keyword of its limit in `Frontier.best`.
        direction: "maximize" or "minimize".
        unit: unit for axes and tables, e.g. "ms"; empty if it has none.
    """

    name: str
    direction: str
    unit: str = ""

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise UserError(f"direction of objective {self.name!r} is {self.direction!r}; allowed: {', '.join(DIRECTIONS)}")

    @property
    def sign(self) -> int:
        """Factor that turns a value into a cost: 1 if minimised, -1 if maximised."""
        return 1 if self.direction == "minimize" else -1

    @property
    def title(self) -> str:
        """For people, with the unit: "peak memory (MB)"."""
        if not self.unit:
            return self.name.replace("_", " ")
        return f"{self.name.removesuffix(f'_{self.unit.lower()}').replace('_', ' ')} ({self.unit})"


# Name in a call or a recipe -> the value it stands for.
OBJECTIVES = {
    "accuracy": Objective(ACCURACY, "maximize"),
    "loss": Objective(LOSS, "minimize"),
    "perplexity": Objective(PERPLEXITY, "minimize"),
    **{name: Objective(name, "maximize") for name in (F1, MATTHEWS, PEARSON, SPEARMAN)},
    MSE: Objective(MSE, "minimize"),
    "latency": Objective(LATENCY, "minimize", "ms"),
    "peak_memory": Objective(MEMORY, "minimize", "MB"),
    "parameters": Objective(PARAMETERS, "minimize"),
    "flops": Objective(FLOPS, "minimize"),
    OUTPUT_CHANGE: Objective(OUTPUT_CHANGE, "minimize"),
    **{name: Objective(name, "maximize") for name in PROXIES},
}
FROM_DATA = (
    *(ACCURACY, LOSS, PERPLEXITY, F1, MATTHEWS, PEARSON, SPEARMAN, MSE, OUTPUT_CHANGE),
    *(name for name, proxy in PROXIES.items() if proxy.needs in ("inputs", "labels")),
)
# What is neither a quality nor a cost that is measured.
COUNTS = (PARAMETERS, FLOPS, OUTPUT_CHANGE, *PROXIES)
MOST_SHOWN = 200  # characters of a value in a message
CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*")


class QualityError(UserError):
    """What computes the quality returns something else than it must: an error of the caller's, whatever the subnet."""


@dataclass(frozen=True)
class Constraint:
    """A limit that a subnet must keep.

    Attributes:
        name: key of a value: accuracy or another score, loss, perplexity, latency_ms, peak_memory_mb, parameters, flops, a proxy,
            or one of the caller's.
        relation: "<=" or ">=".
        limit: in the unit of the value.
    """

    name: str
    relation: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read "latency_ms<=10": a name, <= or >=, and a number; raises ValueError for anything else."""
        match = CONSTRAINT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise UserError(f"constraint {shown(text)} must be a name, <= or >=, and a number, such as 'latency_ms<=10'")
        name, relation, number = match.groups()
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise UserError(f"constraint {text!r}: {number!r} is not a finite number")
        return cls(name, relation, limit)

    def excess(self, value: float) -> float:
        """How far a value is beyond the limit, in its unit; 0 or less if it is within."""
        return value - self.limit if self.relation == "<=" else self.limit - value

    def violation(self, value: float) -> float:
        """`excess` as a fraction of the limit, so that violations in different units can be added."""
        return self.excess(value) / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        return f"{self.name}{self.relation}{number(self.limit)}"


def number(value: float) -> str:
    """All digits of a number, so that it means the same when it is read again."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def read_objectives(given: Sequence[str | Objective]) -> list[Objective]:
    """Look up objectives by name.

    Args:
        given: names of `OBJECTIVES`, or `Objective`s.

    Raises:
        ValueError: no list, an empty one, an unknown name, or one objective twice.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise UserError(f"objectives must be a list of at least one of: {', '.join(OBJECTIVES)}; got {shown(given)}")
    for item in given:
        if not isinstance(item, Objective) and not (isinstance(item, str) and item in OBJECTIVES):
            raise UserError(f"objective {shown(item)} is unknown; known: {', '.join(OBJECTIVES)}, or an Objective of your own")
    found = [item if isinstance(item, Objective) else OBJECTIVES[item] for item in given]
    names = [objective.name for objective in found]
    if len(set(names)) != len(names):
        raise UserError(f"objectives must differ, got {', '.join(names)}")
    return found


def read_constraints(given: Sequence[str]) -> list[Constraint]:
    """Parse every constraint; raises ValueError for the first that cannot be, or if `given` is no list."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"constraints must be a list such as ['latency_ms<=10'], got {shown(given)}")
    return [Constraint.parse(text) for text in given]


def shown(value: object) -> str:
    """A value in a message: itself where that is short, else only its type, as of a model."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN and "\n" not in text else f"a {type(value).__name__}"


def check_values(values: object, wanted: Sequence[str]) -> dict[str, float]:
    """The numbers that `compute_quality` returned, as floats.

    Raises:
        QualityError: no dict of numbers, or a wanted value is missing.
    """
    if not isinstance(values, dict) or not all(isinstance(value, Real) for value in values.values()):
        raise QualityError(f"compute_quality must return a dict of numbers, got {shown(values)}")
    if missing := [name for name in wanted if name not in values]:
        raise QualityError(f"compute_quality returned no {', '.join(missing)}; it returned: {', '.join(values) or 'nothing'}")
    return {name: float(value) for name, value in values.items()}
