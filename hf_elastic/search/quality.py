"""The values of a size that take its weights: metrics of an evaluation set or of the caller's, what is removed, and proxies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Subnet
from ..measure.digests import batches_digest
from ..measure.quality import QualityPass
from ..measure.removals import measure_removals
from ..measure.values import LATENCY, MEMORY, OUTPUT_CHANGE
from .objectives import COUNTS, check_values
from .proxies.table import BY_WEIGHTS, PROXIES, check_batch, score


class Quality:
    """Computes what is wanted of a size besides its costs and counts.

    Args:
        model: the supernet.
        wanted: names of values; those of costs and counts are passed over.
        rows: the evaluation set, or None.
        compute: view -> values by name, instead of metrics of the evaluation set.
        batch_size: rows per batch; proxies see one batch, the first rows.
        data_collator: rows -> batch.
        seed: of a random collator.

    Attributes:
        is_needed: whether there is anything to compute.

    Raises:
        ValueError: rows are needed and missing, or they are not what is needed.
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel,
        wanted: Sequence[str],
        rows: Sequence[Mapping] | None,
        compute: Callable[[PreTrainedModel], dict[str, float]] | None,
        batch_size: int,
        data_collator: Callable[[list[dict]], Mapping] | None,
        seed: int,
    ):
        self.model = model
        self.proxies = [name for name in wanted if name in BY_WEIGHTS]
        self.metrics = [name for name in wanted if name not in (LATENCY, MEMORY, *COUNTS)]
        self.compute, self._passes, self._batch = compute, None, None
        run = [name for name in self.proxies if PROXIES[name].needs != "weights"]
        removed = [name for name in wanted if name == OUTPUT_CHANGE]
        from_rows = [*(self.metrics if compute is None else ()), *run, *removed]
        if from_rows and rows is None:
            raise UserError(f"{', '.join(from_rows)} needs eval_dataset{'' if run or removed else ' or compute_quality'}")
        if self.metrics and compute is None:
            self.compute = self._passes = QualityPass(model, rows, self.metrics, batch_size, data_collator, seed)
        if run:
            batch = QualityPass(model, rows[:batch_size], (), batch_size, data_collator, seed).batches[0]
            self._batch = {key: value.to(model.device) for key, value in batch.items()}
            for name in run:
                check_batch(name, self._batch)
        self._texts = QualityPass(model, rows, (), batch_size, data_collator, seed).batches if removed else None
        self._removals = measure_removals(model, self._texts) if removed else None
        self.is_needed = self.compute is not None or bool(self.proxies) or self._removals is not None

    def __call__(self, subnet: Subnet) -> dict[str, float]:
        """The values of one size, by name.

        Raises:
            QualityError: `compute` does not return what is wanted.
        """
        values = {}
        if self.compute is not None:
            values = check_values(self.compute(self.model.view(subnet)), self.metrics)
        if self._removals is not None:
            values[OUTPUT_CHANGE] = self._removals.of(self.model, subnet)
        return values | {name: score(name, self.model, self._batch, subnet) for name in self.proxies}

    @property
    def identity(self) -> dict[str, object]:
        """What the values depend on besides the model, for a study."""
        data = "compute_quality" if self.compute is not None else None
        data = batches_digest(self._passes.batches) if self._passes is not None else data
        others = {"proxy_batch": [self._batch] if self._batch is not None else None, "texts": self._texts}
        return {"data": data} | {name: batches_digest(seen) for name, seen in others.items() if seen is not None}
