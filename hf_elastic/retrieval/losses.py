"""`ElasticLoss`: trains all sizes of a sentence or cross encoder with any of sentence-transformers' losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses import column_merging_disabled, uses_gradient_cache
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
from torch import Tensor, nn

from ..core.errors import UserError
from ..training.sampling import Sampler, check_size_weights, loss_weights
from .denser import ElasticDenser
from .elastic import ElasticMixin
from .ranker import ElasticRanker
from .towers import FROZEN

SAMPLING = ("sandwich", "all", "single_path")


class ElasticLoss(nn.Module):
    """A loss *modifier*, as `MatryoshkaLoss` and `AdaptiveLayerLoss`: runs another loss on several sizes in each step.

    The sizes are drawn as `ElasticTrainer` draws them. Each size below the full one may also be pulled to what the full one
    says, without a gradient into it: a `SentenceTransformer`'s vectors by `1 - cosine`, a `CrossEncoder`'s scores by their
    mean squared distance. In the asymmetric mode of `ElasticDenser` the full size is the frozen document tower: only smaller
    sizes are trained, on the columns of queries, against document vectors that are computed once per step. Columns are queries
    where `router_mapping` says so; without one the first column is.

    Nested submodels that are trained together: ElasticLM (arXiv 2311.07204); the sandwich: Yu & Huang 2019. The pull of query
    vectors to those of a fixed tower: LEAF (arXiv 2509.12539), for one size. Both at once are ours.

    Args:
        model: an `ElasticDenser` or `ElasticRanker`.
        loss: one of sentence-transformers' losses over that model; None for the pull alone, which needs no labels.
        sampling: "sandwich" (largest, smallest and `num_random_subnets` others), "all" (every named size, or every size where
            none has a name) or "single_path" (one size).
        num_random_subnets: others per sandwich.
        subnets: names of the only sizes to train beside the full one; default: all of the space.
        size_weights: weight of each size: "uniform", "flops", or a mapping of role (largest, smallest, random, or a name) to
            weight.
        alignment_weight: weight of the pull, beside a weight of 1 for `loss`; 0 turns it off. A cross encoder's scores are its
            logits: beside a loss of numbers from 0 to 1, such as `MSELoss` behind a sigmoid, a weight of 1 drowns it, and all
            scores become one; labels that are a teacher's scores need no pull.
        seed: of the draws; all processes draw the same.

    Raises:
        UserError: a model that is not elastic or has one size only, an unknown sampling or size, nothing to train, a loss with
            a gradient cache over a cross encoder, or one over another model.
    """

    def __init__(
        self,
        model: ElasticMixin,
        loss: nn.Module | None = None,
        *,
        sampling: str = "sandwich",
        num_random_subnets: int = 2,
        subnets: Sequence[str] | None = None,
        size_weights: str | Mapping[str, float] = "uniform",
        alignment_weight: float = 1.0,
        seed: int = 42,
    ):
        super().__init__()
        _check(model, loss, sampling, alignment_weight)
        self.model, self.loss = model, loss
        self.size_weights, self.alignment_weight = size_weights, alignment_weight
        elastic = model.elastic
        named = {name: elastic.subnet(name) for name in (elastic.config.subnets if subnets is None else subnets)}
        named = {name: size for name, size in named.items() if model.name_of(name) is not None}
        if subnets is not None and not named:
            raise UserError(f"subnets: {', '.join(subnets) or 'none'}; needed is at least one size below the full one")
        self.sampler = Sampler(
            space=elastic.space,
            sampling=sampling,
            num_random=num_random_subnets,
            seed=seed,
            named=dict(sorted(named.items(), key=lambda item: -elastic.flops_of(item[1]))),
            only_named=subnets is not None,
            max_group=elastic.layout.full.get("group"),
        )
        check_size_weights(self.sampler, size_weights)
        self._trains_full = loss is not None and not model.full_is_frozen
        self._step, self._batch, self._drawn = 0, None, []
        self._cached = None
        if uses_gradient_cache(loss):
            while not hasattr(loss, "calculate_loss"):  # modifiers around it
                loss = loss.loss
            self._cached = loss.calculate_loss = CachedAlignment(loss.calculate_loss)

    def forward(self, sentence_features: Iterable[Any], labels: Tensor | None = None, **options) -> Tensor:
        """The weighted mean, over the drawn sizes, of the loss and the pull.

        Args:
            sentence_features: one dict of features per column, or for a cross encoder the columns' texts.
            labels: as the wrapped loss takes them.
            **options: for the wrapped loss, such as the `prompt` and `task` of a cross encoder's Trainer.
        """
        model = unwrapped(self.model)
        columns = list(sentence_features)
        if self._cached is not None and "forward" in vars(model):
            raise UserError("loss: it has a gradient cache; MatryoshkaLoss goes inside ElasticLoss then, not around it")
        drawn = self._draw(columns)
        weights = loss_weights(model.elastic, drawn, self.size_weights, [(0, 1)] * len(drawn))
        sizes = [model.name_of(size) for _, size in drawn]
        run = self._ranker_losses if isinstance(model, ElasticRanker) else self._denser_losses
        with column_merging_disabled():  # a merged batch has no vectors for each column
            return sum(weight * loss for weight, loss in zip(weights, run(model, columns, labels, sizes, options)))

    def _draw(self, columns: list) -> list[tuple[str, Any]]:
        """The sizes of a step; the same ones for a batch that another modifier runs again, and always in evaluation."""
        if not self.training:
            return self._of_step(0)
        if self._batch is None or [*map(id, self._batch)] != [*map(id, columns)]:
            self._batch, self._drawn = columns, self._of_step(self._step)
            self._step += 1
        return self._drawn

    def _of_step(self, step: int) -> list[tuple[str, Any]]:
        drawn = self.sampler.draw(step, max_steps=0)
        if self._trains_full:
            return drawn
        model = unwrapped(self.model)
        return [one for one in drawn if model.name_of(one[1]) is not None] or self._of_step(step + 1)

    def _denser_losses(
        self, model: ElasticDenser, columns: list[dict[str, Any]], labels: Tensor | None, sizes: list, options: dict
    ) -> Iterator[Tensor]:
        if model.mode == "query" and len(columns) > 1:
            raise UserError(
                f"loss: {len(columns)} columns of texts, and this model encodes queries only; give one column, and as labels the "
                "vectors that it is to come near to"
            )
        queries = query_columns(columns) if model.full_is_frozen else list(range(len(columns)))
        if model.full_is_frozen and self.loss is not None:
            columns = [
                column if index in queries else {**column, FROZEN: self._full_vectors(column).unsqueeze(1)}
                for index, column in enumerate(columns)
            ]
        targets = None
        for size in sizes:  # the full one is the first, where it is drawn
            is_pulled = size is not None and self.alignment_weight > 0
            if is_pulled and targets is None:
                targets = [self._full_vectors(columns[index]) for index in queries]
            named = [{**column, "subnet": size} if index in queries else {**column} for index, column in enumerate(columns)]
            if self._cached is not None:
                self._cached.expect(queries, targets if is_pulled else None, self.alignment_weight)
                loss, vectors = self.loss(named, labels, **options), self._cached.vectors
                self._cached.expect([], None, 0.0)  # the wrapped loss may be used again without this one
            else:
                with recorded(model.last_module, "sentence_embedding") as vectors:
                    loss = self._loss_of(named, queries, labels, options)
                if is_pulled and vectors:  # none where another modifier has kept them from an earlier run
                    loss = loss + self.alignment_weight * pull(vectors, targets)
            if size is None:
                targets = [one.detach() for one in vectors]
            yield loss

    def _loss_of(self, columns: list[dict[str, Any]], queries: list[int], labels: Tensor | None, options: dict) -> Tensor | float:
        if self.loss is not None:
            return total(self.loss(columns, labels, **options))
        for index in queries:
            self.model(columns[index])
        return 0.0

    @torch.no_grad()
    def _full_vectors(self, column: Mapping[str, Any]) -> Tensor:
        """Vectors `[batch, dimension]` of the full size."""
        model = unwrapped(self.model)
        # Not `model(...)`: a modifier may have put one in its place that truncates.
        return type(model).forward(model, {**column})["sentence_embedding"]

    def _ranker_losses(
        self, model: ElasticRanker, columns: list, labels: Tensor | None, sizes: list, options: dict
    ) -> Iterator[Tensor]:
        targets = None
        state = torch.get_rng_state()  # a loss may draw its negatives; all sizes get the same ones
        for size in [None, *sizes] if self.alignment_weight > 0 and sizes[0] is not None else sizes:
            torch.set_rng_state(state)
            is_target_only = size is None and sizes[0] is not None
            gradients = torch.set_grad_enabled(torch.is_grad_enabled() and not is_target_only)
            with gradients, model.selected(size), recorded(model.last_module, "scores") as scores:
                loss = total(self.loss(columns, labels, **options))
            if size is None:
                targets = [one.detach() for one in scores]
            elif self.alignment_weight > 0 and scores:
                distances = [F.mse_loss(one, target) for one, target in zip(scores, targets, strict=True)]
                loss = loss + self.alignment_weight * torch.stack(distances).mean()
            if not is_target_only:
                yield loss

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {
            "loss": type(self.loss).__name__,
            "sampling": self.sampler.sampling,
            "num_random_subnets": self.sampler.num_random,
            "size_weights": self.size_weights,
            "alignment_weight": self.alignment_weight,
        }

    @property
    def citation(self) -> str:
        """For the model card."""
        return """
@article{elasticlm,
    title={On Elastic Language Models},
    author={Chen Zhang and Benyou Wang and Dawei Song},
    journal={ACM Transactions on Information Systems},
    year={2024},
    eprint={2311.07204},
    archivePrefix={arXiv},
}
"""


class CachedAlignment:
    """The pull for a loss that caches gradients: it has the vectors of the whole batch only in `calculate_loss`.

    Args:
        calculate_loss: the wrapped loss's own.
    """

    def __init__(self, calculate_loss: Callable[..., Tensor]):
        self._calculate_loss = calculate_loss
        self.vectors: list[Tensor] = []
        self.expect([], None, 0.0)

    def expect(self, columns: Sequence[int], targets: list[Tensor] | None, weight: float) -> None:
        """Say which columns are pulled to what in the next call, and how much that weighs."""
        self._columns, self._targets, self._weight = columns, targets, weight

    def __call__(self, reps: list[list[Tensor]], *args, **kwargs) -> Tensor:
        """The loss of vectors `reps[column][mini-batch]`, and the pull."""
        loss = total(self._calculate_loss(reps, *args, **kwargs))
        self.vectors = [torch.cat(reps[column]) for column in self._columns]
        if self._targets is None:
            return loss
        distance = self._weight * pull(self.vectors, self._targets)
        if distance.requires_grad:
            distance.backward()  # as the loss's own: the cache is the gradient of the vectors
        return loss + distance.detach()


def pull(vectors: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean of `1 - cosine` over the columns and rows of `[batch, dimension]` each."""
    if len(vectors) != len(targets):
        raise UserError(
            f"loss: it encodes {len(vectors)} of {len(targets)} columns, and which ones cannot be told; set alignment_weight to 0"
        )
    distances = [1 - F.cosine_similarity(one, target).mean() for one, target in zip(vectors, targets)]
    return torch.stack(distances).mean()


def total(loss: Tensor | Mapping[str, Tensor]) -> Tensor:
    """A loss, or the sum of its parts."""
    return sum(loss.values()) if isinstance(loss, Mapping) else loss


def query_columns(columns: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which columns are queries: those that the router mapping says, else the first.

    Raises:
        UserError: the mapping says something else than query and document.
    """
    for column in columns:
        if (task := column.get("task")) not in (None, "query", "document"):
            raise UserError(f"router_mapping: {task!r} is unknown; known: query, document")
    return [index for index, column in enumerate(columns) if column.get("task") == "query"] or [0]


def unwrapped(model: nn.Module) -> ElasticMixin:
    """The model in what DDP or torch.compile has wrapped it."""
    while not isinstance(model, ElasticMixin):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


@contextmanager
def recorded(module: nn.Module, key: str) -> Iterator[list[Tensor]]:
    """What a module writes under `key`, call by call."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output[key]))
    try:
        yield outputs
    finally:
        handle.remove()


def _check(model: ElasticMixin, loss: nn.Module | None, sampling: str, alignment_weight: float) -> None:
    if not isinstance(model, ElasticMixin):
        raise UserError(
            f"model: {type(model).__name__} has no sizes; elastic_sentence_transformer and elastic_cross_encoder make some"
        )
    if model.elastic.space.size == 1:
        raise UserError("model: its space has one size only, so there is nothing to train together")
    if sampling not in SAMPLING:
        raise UserError(f"sampling: {sampling!r} is unknown; known: {', '.join(SAMPLING)}")
    if not 0 <= alignment_weight < math.inf or (loss is None and not alignment_weight):
        raise UserError(
            f"alignment_weight: {alignment_weight} is no number of at least 0, or leaves nothing to train without a loss"
        )
    for module in () if loss is None else loss.modules():
        other = getattr(module, "model", None)
        if isinstance(module, ElasticLoss):
            raise UserError("loss: it is an ElasticLoss already; wrap the loss inside it")
        if isinstance(module, DenoisingAutoEncoderLoss) and getattr(model, "mode", None) != "symmetric":
            raise UserError(
                "loss: DenoisingAutoEncoderLoss trains the tower of documents, which is fixed here; it wants a model with "
                "mode='symmetric'"
            )
        if module is not model and (isinstance(module, ElasticMixin) or (isinstance(other, BaseModel) and other is not model)):
            raise UserError(
                f"loss: {type(loss).__name__} runs another model than the one that is trained here; make it over that one, "
                "where it copies its model take another loss, and as a guide take a `tower`"
            )
    if isinstance(model, ElasticRanker) and (loss is None or uses_gradient_cache(loss)):
        raise UserError(
            f"loss: {type(loss).__name__} does not go with a cross encoder; take one without a gradient cache, such as "
            "MultipleNegativesRankingLoss"
        )
