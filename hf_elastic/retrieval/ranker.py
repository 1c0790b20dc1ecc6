"""`ElasticRanker`: a `CrossEncoder` in many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sentence_transformers import CrossEncoder

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticForCausalLM, ElasticForSequenceClassification
from ..core.space import Space
from .elastic import ElasticMixin, settings_of
from .transformer import ElasticTransformer, with_model

# What a cross encoder's model does, in sentence-transformers' words, and our class for it.
TASKS = {"sequence-classification": ElasticForSequenceClassification, "text-generation": ElasticForCausalLM}


class ElasticRanker(ElasticMixin, CrossEncoder):
    """A `CrossEncoder` in many sizes: `predict(pairs, subnet="small")`, `rank(query, documents, subnet="small")`.

    One call scores all candidates at one size: scores of two sizes do not compare. ElasticRanker is ElasticLM's
    (arXiv 2311.07204); that it is a `CrossEncoder` is ours.

    Raises:
        UserError: there is no elastic model in what is loaded.
    """

    @contextmanager
    def selected(self, subnet: str | Mapping | None) -> Iterator[None]:
        """Run a size where a call does not name one."""
        before = self.elastic.config.subnet
        self.elastic.select(subnet)
        try:
            yield
        finally:
            self.elastic.select(before)

    def predict(self, *args, subnet: str | Mapping | None = None, **kwargs):
        """As `CrossEncoder.predict`, at a size.

        Raises:
            UserError: no such size, also where there are no pairs.
        """
        self.name_of(subnet)
        return super().predict(*args, subnet=subnet, **kwargs)

    def rank(self, query, documents, *args, subnet: str | Mapping | None = None, **kwargs):
        """As `CrossEncoder.rank`, at a size.

        Raises:
            UserError: no such size.
        """
        with self.selected(self.elastic.config.subnet if subnet is None else subnet):
            return super().rank(query, documents, *args, **kwargs)

    def tower(self, subnet: str | Mapping | None = None) -> CrossEncoder:
        """A size as a plain `CrossEncoder` that shares the weights.

        Raises:
            UserError: no such size.
        """
        first = self.elastic_module.sized(subnet)
        return CrossEncoder(modules=[first, *list(self)[1:]], device=str(self.device), **settings_of(self))


def elastic_cross_encoder(
    model: str | CrossEncoder,
    space: Mapping | Space | str | None = None,
    subnets: Mapping | None = None,
    *,
    layer_order: str | list[int] = "ends",
    importance: str | None = None,
    **kwargs,
) -> ElasticRanker:
    """Make a cross encoder elastic.

    Args:
        model: a Hub id, a local folder, or a ready `CrossEncoder`.
        space: which sizes; as for `ElasticModel.from_base`.
        subnets: name -> size.
        layer_order: which layers a depth keeps; here "ends" by default, so that every size ends with the last layer.
        importance: as for `ElasticModel.from_base`.
        **kwargs: for `CrossEncoder`, where `model` is a name.

    Raises:
        UserError: a cross encoder of another task; or see `ElasticModel.from_base`.
    """
    stock = model if isinstance(model, CrossEncoder) else CrossEncoder(model, **kwargs)
    first = stock[0]
    if (kind := TASKS.get(first.transformer_task)) is None:
        raise UserError(f"{model}: a cross encoder for {first.transformer_task}; known: {', '.join(TASKS)}")
    elastic = kind.from_base(first.model, space=space, subnets=subnets, layer_order=layer_order, importance=importance)
    modules = [with_model(first, elastic, ElasticTransformer), *list(stock)[1:]]
    return ElasticRanker(modules=modules, device=str(stock.device), **settings_of(stock))
