"""Obtains the values of subnets, each once: counts, quality and latency."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ..core.layout import Cut
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Space, Subnet
from ..measure.cost_model import CostModel
from ..measure.latency import Latency
from ..measure.memory import measure_memory
from ..measure.values import FLOPS, LATENCY, MEMORY, PARAMETERS
from ..measure.workload import Workload
from .candidate import Candidate, Rules
from .encoding import Encoding
from .objectives import Objective, QualityError
from .population import Known, population
from .quality import Quality
from .study import Study

PAUSE_SECONDS = 0.2  # between two looks at what other processes have done

logger = logging.getLogger(__name__)


class Evaluator:
    """Looks subnets up, and evaluates them.

    Args:
        model: the supernet.
        study: keeps every value as soon as it is known, and says who evaluates what.
        goals: the objectives.
        rules: what is wanted.
        quality: subnet -> the values that take its weights.
        workload: what is timed; its batch and length also count the FLOPs.
        predictors: cost models by the name of the value; such a value is measured for the frontier only.
        measures: False where this is not the machine that the predictors are for: nothing is measured here.
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel,
        study: Study,
        goals: Sequence[Objective],
        rules: Rules,
        quality: Quality,
        workload: Workload,
        predictors: Mapping[str, CostModel] | None = None,
        measures: bool = True,
    ):
        self.model = model
        self.study = study
        self.goals = list(goals)
        self.rules = rules
        self.quality = quality
        self.workload = workload
        self.predictors = dict(predictors or {})
        self.is_timed = LATENCY in rules.wanted and measures
        self.is_weighed = MEMORY in rules.wanted and measures
        self.closed = Known(model, self.predictors, workload.batch_size, workload.sequence_length)
        self.candidates: dict[Cut, Candidate] = {}
        self.last_run: dict[Subnet, Latency] = {}
        self.refresh()

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
        names = dict.fromkeys((PARAMETERS, FLOPS, *self.predictors, *self.rules.wanted))
        known = self.closed(self.model.counts.columns([subnet]), tuple(names))
        candidate = Candidate(subnet, {name: found[0].item() for name, found in known.items() if name not in self.predictors})
        for name in self.predictors:
            candidate.predict(name, known[name][0])
        # Asking builds the subnet, so it comes last; of layers that differ the answer is known.
        if self.rules.is_standard and not self.rules.problems(candidate):
            is_sayable = not self.model.layout.unsayable(cut)
            candidate.why_elastic = self.model.why_elastic(subnet) if is_sayable else "its layers have different sizes"
        return candidate

    def known(self, space: Space, encoding: Encoding, places: np.ndarray) -> dict[str, np.ndarray]:
        """The wanted values of rows `[N, G]` that need no evaluation, `[N]` by name."""
        return self.closed(population(self.model, space, encoding, places), self.rules.wanted)

    def refresh(self) -> None:
        """Take in what the study has of subnets that this process has not evaluated."""
        self.study.refresh()
        for subnet, why in self.study.finished():
            candidate = self.look_up(subnet)
            if not candidate.is_evaluated:
                self._take_in(candidate, why)

    def _take_in(self, candidate: Candidate, why: str | None) -> None:
        quality, latency, memory = (self.study.get(candidate.subnet, kind) for kind in ("quality", "latency", "memory"))
        candidate.values.update(self._finite(quality or {}))
        if latency is not None:
            candidate.set_latency(Latency.from_dict(latency))
        if memory is not None:
            candidate.set_memory(memory)
        lacks = any(name not in candidate.values for name in self.rules.wanted)
        candidate.why_failed = why if lacks and not quality else None
        candidate.is_evaluated = True

    def obtain(self, candidates: Sequence[Candidate], on_each: Callable[[], object]) -> None:
        """Evaluate what nobody else evaluates, and wait for the others."""
        while missing := [candidate for candidate in candidates if not candidate.is_evaluated]:
            if not self.evaluate(missing, on_each):
                time.sleep(PAUSE_SECONDS)
                self.refresh()

    def complete(self, most: int, on_each: Callable[[], object]) -> None:
        """Wait until everything is evaluated that was begun, and evaluate what a process that was killed has left.

        Args:
            most: subnets of the study.
            on_each: called after each that this process evaluates.
        """
        while True:
            self.refresh()
            if self.study.is_complete(most):
                return
            if not self.take_over(most, on_each):
                time.sleep(PAUSE_SECONDS)

    def take_over(self, most: int, on_each: Callable[[], object]) -> list[Candidate]:
        """Evaluate what was begun and left; see `evaluate`."""
        return self.evaluate([self.look_up(subnet) for subnet in self.study.free(most)], on_each, most)

    def evaluate(
        self, candidates: Sequence[Candidate], on_each: Callable[[], object], most: int | None = None
    ) -> list[Candidate]:
        """Obtain everything about the candidates that nobody else evaluates; their latencies are measured side by side.

        Args:
            candidates: each at most once.
            on_each: called after the quality of each.
            most: subnets that the whole study may have; None is no limit.

        Returns:
            those that were evaluated here.

        Raises:
            ValueError: `compute_quality` does not return the wanted values, or the model cannot run the latency input.
        """
        claimed = set(self.study.claim([candidate.subnet for candidate in candidates], most)) if candidates else set()
        mine = [candidate for candidate in candidates if candidate.subnet in claimed]
        for candidate in mine:
            self._add_quality(candidate)
            on_each()
        sound = [candidate for candidate in mine if candidate.why_failed is None]
        if self.is_timed and LATENCY not in self.predictors and sound:
            self._add_latencies(sound)
        if self.is_weighed and MEMORY not in self.predictors and sound:
            self.add_memories(sound)
        for candidate in mine:
            self._finish(candidate)
        return mine

    def _finish(self, candidate: Candidate) -> None:
        candidate.is_evaluated = True
        if all(name in candidate.values for name in self.rules.wanted):
            self.study.finish(candidate.subnet, [candidate.values[goal.name] for goal in self.goals])
        else:
            self.study.finish(candidate.subnet, None, "; ".join(self.rules.problems(candidate)))

    def _add_quality(self, candidate: Candidate) -> None:
        """What goes wrong with one size is no reason to end the search; what goes wrong with the largest would with all."""
        try:
            candidate.values.update(self._finite(self._quality(candidate.subnet)))
        except Exception as error:
            if candidate is self.largest or isinstance(error, QualityError):
                raise
            logger.warning("the evaluation of %s failed", candidate.subnet, exc_info=True)
            candidate.why_failed = f"its evaluation failed: {type(error).__name__}: {error}"

    def _quality(self, subnet: Subnet) -> dict[str, float]:
        if not self.quality.is_needed:
            return {}
        values = self.study.get(subnet, "quality")
        if values is None:
            values = self.quality(subnet)
            self.study.put("quality", {subnet: values})
        return values

    @staticmethod
    def _finite(values: dict[str, float]) -> dict[str, float]:
        """Drop what is no number: a size that computes NaN is infeasible, and no reason to end the search."""
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def add_memories(self, candidates: Sequence[Candidate]) -> None:
        """Measure the peak memory of candidates, each once."""
        missing = [c.subnet for c in candidates if self.study.get(c.subnet, "memory") is None]
        if missing:
            found = measure_memory(self.model, missing, self.workload)
            self.study.put("memory", {subnet: asdict(memory) for subnet, memory in found.items()})
        for candidate in candidates:
            candidate.set_memory(self.study.get(candidate.subnet, "memory"))

    def _add_latencies(self, candidates: Sequence[Candidate]) -> None:
        missing = [candidate.subnet for candidate in candidates if self.study.get(candidate.subnet, "latency") is None]
        if missing:
            self._measure_batch(missing)
        for candidate in candidates:
            candidate.set_latency(Latency.from_dict(self.study.get(candidate.subnet, "latency")))

    def _measure_batch(self, subnets: list[Subnet]) -> None:
        """Measure together with the largest subnet, and scale by its first latency over its present one.

        The ratio of two subnets in one run is far more stable than one number over hours, in which a machine gets hot or busy.
        """
        largest = self.largest.subnet
        first = self.study.get(largest, "latency")
        measured = self.workload.measure(self.model, list(dict.fromkeys([largest, *subnets])))
        factor = first["median_ms"] / measured[largest].median_ms if first else 1.0
        scaled = {
            subnet: Latency.from_samples([factor * sample for sample in one.samples_ms], one.others)
            for subnet, one in ((subnet, measured[subnet]) for subnet in subnets)
        }
        self.study.put("latency", {subnet: latency.to_dict() for subnet, latency in scaled.items()})

    def measure_together(self, candidates: Sequence[Candidate], progress: Callable[[int, int], object]) -> None:
        """Replace the latencies of candidates by those of one run, and scale those of all others to that run."""
        largest = self.largest
        subnets = [largest.subnet, *(c.subnet for c in candidates if c is not largest)]
        measured = self.last_run = self.workload.measure(self.model, subnets, progress)
        factor = measured[largest.subnet].median_ms / largest.values[LATENCY]
        for candidate in self.evaluated:
            if candidate.subnet in measured:
                candidate.set_latency(measured[candidate.subnet])
            else:
                candidate.scale_latency(factor)
