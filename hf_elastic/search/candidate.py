"""What a search knows of one subnet, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.space import Subnet
from ..measure.latency import Latency
from ..measure.values import LATENCY, MEMORY
from .objectives import Constraint, number

MEASURED, PREDICTED = "measured", "predicted"


@dataclass
class Candidate:
    """A subnet that the search has looked at.

    Attributes:
        subnet: with every axis spelled out.
        values: what is known of it, by name.
        details: intervals of values, see `Point`; and under NAME_is whether a cost is "measured" or "predicted".
        why_elastic: why it is not standard where it has to be, or None.
        is_evaluated: whether every kind of value was asked for; one that is no finite number is still missing.
        why_failed: why its values could not be computed, or None.
    """

    subnet: Subnet
    values: dict[str, float] = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    why_elastic: str | None = None
    is_evaluated: bool = False
    why_failed: str | None = None

    def set_latency(self, latency: Latency) -> None:
        """Take over a measurement."""
        self.values[LATENCY] = latency.median_ms
        self.details[LATENCY] = [latency.low_ms, latency.high_ms]
        self.details[f"{LATENCY}_is"] = MEASURED

    def scale_latency(self, factor: float) -> None:
        """Multiply the latency and its interval."""
        self.values[LATENCY] *= factor
        if LATENCY in self.details:
            self.details[LATENCY] = [end * factor for end in self.details[LATENCY]]

    def set_memory(self, memory: Mapping) -> None:
        """Take over a measurement, the fields of a `PeakMemory`."""
        self.values[MEMORY] = memory["peak_mb"]
        self.details[f"{MEMORY}_is"] = MEASURED

    def predict(self, name: str, value: float) -> None:
        """Take over a value that was not measured."""
        self.values[name] = float(value)
        self.details[f"{name}_is"] = PREDICTED


@dataclass(frozen=True)
class Rules:
    """What a subnet must be.

    Attributes:
        wanted: names of the values that it must have.
        constraints: limits on values.
        is_standard: whether it must be an instance of the stock class.
    """

    wanted: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    is_standard: bool

    def problems(self, candidate: Candidate) -> dict[str, float]:
        """What is known to be wrong with a candidate, in words, and how much, relative to the limit."""
        found = {}
        for constraint in self.constraints:
            value = candidate.values.get(constraint.name)
            if value is not None and constraint.excess(value) > 0:
                words = f"{constraint.name}={number(value)} breaks {constraint} by {constraint.excess(value):g}"
                found[words] = constraint.violation(value)
        if candidate.why_elastic is not None:
            found[f"not standard: {candidate.why_elastic}"] = 1.0
        if candidate.why_failed is not None:
            found[candidate.why_failed] = 1.0
        elif candidate.is_evaluated:
            found.update({f"{name} is not a finite number": 1.0 for name in self.wanted if name not in candidate.values})
        return found
