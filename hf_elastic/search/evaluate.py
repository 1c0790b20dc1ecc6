"""Obtains the values of subnets, each once: counts, quality and latency."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from transformers import PreTrainedModel

from ..layout import Cut
from ..modeling_elastic import ElasticPreTrainedModel
from ..space import Subnet
from .measure import Latency
from .memory import measure_memory
from .objectives import COUNTS, FLOPS, LATENCY, MEMORY, PARAMETERS, Constraint, check_values
from .predict import CostModel
from .proxies import CLOSED_FORMS, closed_form
from .store import Store
from .targets import Target

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
    """

    subnet: Subnet
    values: dict[str, float] = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    why_elastic: str | None = None
    is_evaluated: bool = False

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
                words = f"{constraint.name}={value:g} breaks {constraint} by {constraint.excess(value):g}"
                found[words] = constraint.violation(value)
        if candidate.why_elastic is not None:
            found[f"not standard: {candidate.why_elastic}"] = 1.0
        if candidate.is_evaluated:
            found.update({f"{name} is not a finite number": 1.0 for name in self.wanted if name not in candidate.values})
        return found


class Evaluator:
    """Looks subnets up, and evaluates them.

    Args:
        model: the supernet.
        store: keeps every value as soon as it is known.
        rules: what is wanted.
        compute_quality: model -> values by name; None if no quality is wanted.
        latency: what is timed; its batch and length also count the FLOPs.
        predictors: cost models by the name of the value; such a value is measured for the frontier only.
        measures: False where this is not the machine that the predictors are for: nothing is measured here.
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel,
        store: Store,
        rules: Rules,
        compute_quality: Callable[[PreTrainedModel], dict[str, float]] | None,
        latency: Target,
        predictors: Mapping[str, CostModel] | None = None,
        measures: bool = True,
    ):
        self.model = model
        self.store = store
        self.rules = rules
        self.compute_quality = compute_quality
        self.latency = latency
        self.predictors = dict(predictors or {})
        self.is_timed = LATENCY in rules.wanted and measures
        self.is_weighed = MEMORY in rules.wanted and measures
        self.candidates: dict[Cut, Candidate] = {}
        kinds = [] if compute_quality is None else ["quality"]
        kinds += ["latency"] if self.is_timed and LATENCY not in self.predictors else []
        kinds += ["memory"] if self.is_weighed and MEMORY not in self.predictors else []
        self.evaluate([self.look_up(subnet) for subnet in store.subnets(kinds)])

    @property
    def evaluated(self) -> list[Candidate]:
        """The candidates whose values are all known."""
        return [candidate for candidate in self.candidates.values() if candidate.is_evaluated]

    @property
    def decided(self) -> list[Candidate]:
        """The evaluated and the refused candidates; not those that the budget was too small for."""
        return [c for c in self.candidates.values() if c.is_evaluated or self.rules.problems(c)]

    @property
    def largest(self) -> Candidate:
        """The largest subnet, with which latencies are compared."""
        return self.look_up(self.model.space.largest)

    def look_up(self, subnet: Subnet) -> Candidate:
        """The one candidate of a subnet, with its counts; nothing is run."""
        cut = self.model.resolve(subnet)
        if cut not in self.candidates:
            self.candidates[cut] = self.preview(subnet)
        return self.candidates[cut]

    def preview(self, subnet: Subnet) -> Candidate:
        """Like `look_up`, but a candidate that was not there is not kept."""
        cut = self.model.resolve(subnet)
        if cut in self.candidates:
            return self.candidates[cut]
        subnet = self.model.subnet(subnet)
        shape = (self.latency.batch_size, self.latency.sequence_length)
        counts = {PARAMETERS: self.model.num_parameters_of(subnet), FLOPS: self.model.flops_of(subnet, *shape)}
        proxies = [name for name in self.rules.wanted if name in CLOSED_FORMS]
        counts |= {name: float(found[0]) for name, found in closed_form(self.model, [subnet], proxies).items()}
        candidate = Candidate(subnet, counts)
        for name, model in self.predictors.items():
            candidate.predict(name, model.predict(self.model, [subnet])[0])
        # Asking builds the subnet, so it comes last; of layers that differ the answer is known.
        if self.rules.is_standard and not self.rules.problems(candidate):
            candidate.why_elastic = self.model.why_elastic(subnet) if cut.is_uniform else "its layers have different sizes"
        return candidate

    def evaluate(self, candidates: Sequence[Candidate], on_each: Callable[[], object] = lambda: None) -> None:
        """Obtain everything about the candidates; their latencies are measured side by side.

        Args:
            candidates: each at most once.
            on_each: called after the quality of each.

        Raises:
            ValueError: `compute_quality` does not return the wanted values, or the model cannot run the latency input.
        """
        for candidate in candidates:
            candidate.values.update(self._finite(self._quality(candidate.subnet)))
            on_each()
        if self.is_timed and LATENCY not in self.predictors:
            self._add_latencies(candidates)
        if self.is_weighed and MEMORY not in self.predictors:
            self.add_memories(candidates)
        for candidate in candidates:
            candidate.is_evaluated = True

    def _quality(self, subnet: Subnet) -> dict[str, float]:
        if self.compute_quality is None:
            return {}
        values = self.store.get(subnet, "quality")
        if values is None:
            wanted = [name for name in self.rules.wanted if name not in (LATENCY, MEMORY, *COUNTS)]
            values = check_values(self.compute_quality(self.model.view(subnet)), wanted)
            self.store.put("quality", {subnet: values})
        return values

    @staticmethod
    def _finite(values: dict[str, float]) -> dict[str, float]:
        """Drop what is no number: a size that computes NaN is infeasible, and no reason to end the search."""
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def add_memories(self, candidates: Sequence[Candidate]) -> None:
        """Measure the peak memory of candidates, each once."""
        missing = [c.subnet for c in candidates if self.store.get(c.subnet, "memory") is None]
        if missing:
            found = measure_memory(self.model, missing, self.latency)
            self.store.put("memory", {subnet: asdict(memory) for subnet, memory in found.items()})
        for candidate in candidates:
            candidate.set_memory(self.store.get(candidate.subnet, "memory"))

    def _add_latencies(self, candidates: Sequence[Candidate]) -> None:
        missing = [candidate.subnet for candidate in candidates if self.store.get(candidate.subnet, "latency") is None]
        if missing:
            self._measure_batch(missing)
        for candidate in candidates:
            candidate.set_latency(Latency.from_dict(self.store.get(candidate.subnet, "latency")))

    def _measure_batch(self, subnets: list[Subnet]) -> None:
        """Measure together with the largest subnet, and scale by its first latency over its present one.

        The ratio of two subnets in one run is far more stable than one number over hours, in which a machine gets hot or busy.
        """
        largest = self.largest.subnet
        first = self.store.get(largest, "latency")
        measured = self.latency.measure(self.model, list(dict.fromkeys([largest, *subnets])))
        factor = first["median_ms"] / measured[largest].median_ms if first else 1.0
        scaled = {subnet: [factor * sample for sample in measured[subnet].samples_ms] for subnet in subnets}
        self.store.put("latency", {subnet: Latency.from_samples(samples).to_dict() for subnet, samples in scaled.items()})

    def measure_together(self, candidates: Sequence[Candidate], progress: Callable[[int, int], object]) -> None:
        """Replace the latencies of candidates by those of one run, and scale those of all others to that run."""
        largest = self.largest
        subnets = [largest.subnet, *(c.subnet for c in candidates if c is not largest)]
        measured = self.latency.measure(self.model, subnets, progress)
        factor = measured[largest.subnet].median_ms / largest.values[LATENCY]
        for candidate in self.evaluated:
            if candidate.subnet in measured:
                candidate.set_latency(measured[candidate.subnet])
            else:
                candidate.scale_latency(factor)
