"""What was measured of the sizes of a model, read from the files that training, search and evaluation wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.layout import Cut
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..search import Frontier
from ..search.objectives import COUNTS, OBJECTIVES
from ..search.picture import value_text

COSTS = (*COUNTS, *(objective.name for objective in OBJECTIVES.values() if objective.unit))
# What Trainer adds to the metrics of an evaluation; it is of the machine, not of the model.
BOOKKEEPING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
FULL_NAMES = ("full", "largest")


@dataclass(frozen=True)
class Measurement:
    """One value of one size.

    Attributes:
        cut: the size.
        metric: what was measured, such as "accuracy" or "latency_ms".
        value: it.
        text: it for people, with its interval if one is known.
        dataset: what it was measured on, if the file says so.
        setting: of a value for comparison, how that other model was made; None of this one.
    """

    cut: Cut
    metric: str
    value: float
    text: str
    dataset: str | None = None
    setting: str | None = None

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model is, rather than what it costs."""
        return self.metric not in COSTS

    @property
    def column(self) -> str:
        """Heading of a table."""
        metric = self.metric if self.dataset is None else f"{self.dataset}: {self.metric}"
        return metric if self.setting is None else f"{metric}, {self.setting}"


def size_named(model: ElasticPreTrainedModel, name: str) -> str | None:
    """What a name in a file means to `model.resolve`: the full size has several names."""
    return None if name in FULL_NAMES else name


def from_metrics(model: ElasticPreTrainedModel, metrics: Mapping[str, float]) -> list[Measurement]:
    """What `hf-elastic train` wrote to `metrics.json`, or `ElasticTrainer.evaluate` returned.

    Args:
        model: the elastic model.
        metrics: `eval_METRIC` of the full size, and `eval_SIZE_METRIC`; anything else is left out.
    """
    prefixes = {f"eval_{name}_": name for name in ("smallest", *model.config.subnets)} | {"eval_": "largest"}
    found = []
    for key, value in metrics.items():
        prefix = next((prefix for prefix in sorted(prefixes, key=len, reverse=True) if key.startswith(prefix)), None)
        if prefix is None or key.endswith(BOOKKEEPING) or not isinstance(value, int | float):
            continue
        cut = model.resolve(size_named(model, prefixes[prefix]))
        found.append(Measurement(cut, key.removeprefix(prefix), value, f"{value:.4g}"))
    return found


def from_frontier(model: ElasticPreTrainedModel, frontier: Frontier) -> list[Measurement]:
    """The values of every evaluated size, with intervals; parameters and FLOPs are left out, being counted anyway.

    Raises:
        ValueError: the frontier is of another model, which has other sizes.
    """
    found = []
    for point in frontier.evaluated:
        try:
            cut = model.resolve(point.subnet)
        except ValueError as error:
            raise UserError(f"the frontier is of another model: {error}") from error
        for metric, value in point.values.items():
            if metric not in COUNTS:
                found.append(Measurement(cut, metric, value, value_text(point, metric)))
    return found


def from_evaluation(model: ElasticPreTrainedModel, path: str | Path) -> list[Measurement]:
    """What `hf-elastic evaluate` wrote: a score with its standard error for each size and task.

    Raises:
        ValueError: there is no such file, it holds no evaluation, or a size of another model.
    """
    found = []
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        for name, size in data["sizes"].items():
            cut = model.resolve(size["subnet"] if isinstance(size["subnet"], Mapping) else size_named(model, name))
            for task, score in size["scores"].items():
                text = f"{score['value']:.4g}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.2g}")
                found.append(Measurement(cut, data["tasks"][task]["metric"], score["value"], text, task))
    except OSError as error:
        raise UserError(f"cannot read the results {path}: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} holds no evaluation: {type(error).__name__}: {error}") from error
    return found


def columns(measurements: Iterable[Measurement]) -> list[str]:
    """Headings of a table, quality first."""
    return list(dict.fromkeys(one.column for one in sorted(measurements, key=lambda one: not one.is_quality)))


def cell(measurements: Sequence[Measurement], cut: Cut, column: str) -> str:
    """What a table says of a size; the last file that was read wins."""
    return next((one.text for one in reversed(measurements) if one.cut == cut and one.column == column), "")
