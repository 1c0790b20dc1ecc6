"""What an evaluation has found out about each size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.table import Table
from sentence_transformers import CrossEncoder, SentenceTransformer

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from .metrics import Comparison, Scores

Subnet = str | Mapping | None

FIRST_STAGE = "first stage"


def size_name(subnet: Subnet) -> str:
    """What a size is called in tables and files: JSON if it has no name."""
    if subnet is None:
        return FULL
    return subnet if isinstance(subnet, str) else json.dumps(dict(subnet))


def size_argument(model: SentenceTransformer | CrossEncoder, subnet: Subnet, option: str = "subnets") -> dict[str, str | Mapping]:
    """The argument of `encode` and `predict` that chooses a size; none for a model without sizes.

    Raises:
        UserError: a size of a model that has none; it names the option that asked for it.
    """
    if "subnet" in model.get_model_kwargs():
        return {"subnet": FULL if subnet is None else subnet}  # without it, what was selected in the model would run
    if subnet is not None:
        raise UserError(f"{option}: {size_name(subnet)!r}: a plain {type(model).__name__} has no sizes")
    return {}


def check_one_label(ranker: CrossEncoder) -> None:
    """Raise UserError if a ranker has several scores for a document."""
    if ranker.num_labels != 1:
        raise UserError(f"ranker: has {ranker.num_labels} labels; a score for each document needs one")


@dataclass(frozen=True)
class SizeResult:
    """One size.

    Attributes:
        name: of `size_name`, or `FIRST_STAGE`.
        scores: its metrics.
        differences: to the full size, by metric; empty for the full size itself, and where it was not evaluated.
    """

    name: str
    scores: Scores
    differences: dict[str, Comparison]


@dataclass(frozen=True)
class RetrievalResults:
    """All sizes.

    Attributes:
        data: name of the collection.
        metrics: their names.
        queries: how many were searched for (count).
        sizes: in the order in which they were asked for; of a ranker, the first stage comes before them.
    """

    data: str
    metrics: tuple[str, ...]
    queries: int
    sizes: list[SizeResult]

    def __getitem__(self, subnet: Subnet) -> SizeResult:
        """The result of a size; None for the full one.

        Raises:
            KeyError: it was not evaluated.
        """
        return {size.name: size for size in self.sizes}[size_name(subnet)]

    def to_dict(self) -> dict:
        """All but the values of single queries, for JSON."""
        sizes = {
            size.name: {
                "metrics": size.scores.means,
                "queries_without_results": size.scores.without_results,
                "queries_without_judgements": size.scores.without_judgements,
                "differences": {metric: asdict(test) for metric, test in size.differences.items()},
            }
            for size in self.sizes
        }
        return {"data": self.data, "queries": self.queries, "sizes": sizes}

    def table(self) -> Table:
        """One row per size: the means, and the difference to the full size with its p-value."""
        table = Table("size", *self.metrics, title=f"{self.data}: {self.queries} queries")
        for size in self.sizes:
            tests = {metric: f" ({test.difference:+.4f}, p={test.p_value:.3g})" for metric, test in size.differences.items()}
            table.add_row(size.name, *(f"{size.scores.means[metric]:.4f}{tests.get(metric, '')}" for metric in self.metrics))
        return table
