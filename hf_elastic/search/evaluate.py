"""Obtains the values of subnets, each once: counts, quality and latency."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from ..layout import Cut
from ..modeling_elastic import ElasticForMultipleChoice, ElasticPreTrainedModel
from ..space import Subnet
from .measure import Latency, measure_latency
from .objectives import COUNTS, FLOPS, LATENCY, PARAMETERS, Constraint, check_values
from .store import Store

WAIT_FOR = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}


@dataclass(frozen=True)
class LatencySettings:
    """What is timed.

    Attributes:
        batch_size: sequences per call.
        sequence_length: tokens per sequence.
        threads: torch threads while measuring; None leaves them as they are.
        seed: seed of the input and of the order of the measurements.
    """

    batch_size: int
    sequence_length: int
    threads: int | None
    seed: int

    def measure(
        self, model: ElasticPreTrainedModel, subnets: Sequence[Subnet], progress: Callable[[int, int], object] | None = None
    ) -> dict[Subnet, Latency]:
        """Time one forward pass of each subnet, interleaved in one run.

        Raises:
            ValueError: the model cannot run on this many tokens.
        """
        inputs = self.make_input(model)
        calls = {str(place): _forward(model.view(subnet), inputs) for place, subnet in enumerate(subnets)}
        with use_threads(self.threads), torch.inference_mode():
            try:
                calls["0"]()
            except (IndexError, RuntimeError) as error:
                shape = f"latency_batch_size {self.batch_size}, sequence_length {self.sequence_length}"
                raise ValueError(f"{shape}: the model cannot run this input: {error}") from error
            measured = measure_latency(calls, seed=self.seed, progress=progress)
        return dict(zip(subnets, measured.values()))

    def make_input(self, model: ElasticPreTrainedModel) -> dict[str, torch.Tensor]:
        """Random tokens "batch length", for multiple choice "batch 1 length", without padding."""
        choices = (1,) if isinstance(model, ElasticForMultipleChoice) else ()
        shape = (self.batch_size, *choices, self.sequence_length)
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(model.get_input_embeddings().num_embeddings, shape, generator=generator).to(model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _forward(view: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    wait = WAIT_FOR.get(view.device.type)

    def call() -> None:
        view(**inputs)
        if wait is not None:
            wait()

    return call


@contextlib.contextmanager
def use_threads(threads: int | None) -> Iterator[None]:
    """Set the number of torch threads for a while; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Candidate:
    """A subnet that the search has looked at.

    Attributes:
        subnet: with every axis spelled out.
        values: what is known of it, by name.
        details: intervals of values, see `Point`.
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

    def scale_latency(self, factor: float) -> None:
        """Multiply the latency and its interval."""
        self.values[LATENCY] *= factor
        self.details[LATENCY] = [end * factor for end in self.details[LATENCY]]


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
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel,
        store: Store,
        rules: Rules,
        compute_quality: Callable[[PreTrainedModel], dict[str, float]] | None,
        latency: LatencySettings,
    ):
        self.model = model
        self.store = store
        self.rules = rules
        self.compute_quality = compute_quality
        self.latency = latency
        self.is_timed = LATENCY in rules.wanted
        self.candidates: dict[Cut, Candidate] = {}
        kinds = [kind for kind, needed in (("quality", compute_quality), ("latency", self.is_timed)) if needed]
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
        candidate = Candidate(subnet, counts)
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
        if self.is_timed:
            self._add_latencies(candidates)
        for candidate in candidates:
            candidate.is_evaluated = True

    def _quality(self, subnet: Subnet) -> dict[str, float]:
        if self.compute_quality is None:
            return {}
        values = self.store.get(subnet, "quality")
        if values is None:
            wanted = [name for name in self.rules.wanted if name not in (LATENCY, *COUNTS)]
            values = check_values(self.compute_quality(self.model.view(subnet)), wanted)
            self.store.put("quality", {subnet: values})
        return values

    @staticmethod
    def _finite(values: dict[str, float]) -> dict[str, float]:
        """Drop what is no number: a size that computes NaN is infeasible, and no reason to end the search."""
        return {name: value for name, value in values.items() if math.isfinite(value)}

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
