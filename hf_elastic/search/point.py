"""One evaluated subnet of a frontier."""

import math
from dataclasses import dataclass, field
from numbers import Real

from ..core.errors import UserError


@dataclass(frozen=True)
class Point:
    """One evaluated subnet.

    Attributes:
        subnet: the choice, with values that JSON can hold.
        values: measured numbers by name, at least the objectives if the point is feasible.
        details: anything else worth keeping. Under the name of a value: its interval `[low, high]` in the same unit.
        name: a name for tables and pictures; "full" and "chosen" are marked specially.
        feasible: False if the subnet breaks a constraint of the search; such a point is never on the frontier.
    """

    subnet: dict
    values: dict[str, float]
    details: dict = field(default_factory=dict)
    name: str | None = None
    feasible: bool = True

    def __post_init__(self):
        for part in (self.subnet, self.values, self.details):
            if not isinstance(part, dict):
                raise UserError(f"subnet, values and details of a point must be dicts, got {part!r}")
        for name, value in self.values.items():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise UserError(f"value {name!r} of subnet {self.subnet} is {value!r}; it must be a finite number, or left out")
            interval = self.details.get(name, (value, value))
            if not isinstance(interval, list | tuple) or len(interval) != 2 or not interval[0] <= value <= interval[1]:
                raise UserError(f"details[{name!r}] must be [low, high] around {value}, got {interval!r}")
        # numpy and torch scalars are not JSON
        object.__setattr__(self, "values", {name: float(value) for name, value in self.values.items()})
