"""`ElasticDenser`: a `SentenceTransformer` whose sizes answer for one index."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.util import load_file_path
from torch import nn

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticModel
from ..core.space import Space
from .elastic import ElasticMixin, settings_of
from .heads import FILE_NAME, SizeHeads, stock_modules
from .towers import SIZES, Towers, no_size_for_documents
from .transformer import ElasticTransformer, with_model

MODES = ("asymmetric", "symmetric")


class ElasticDenser(ElasticMixin, SentenceTransformer):
    """A `SentenceTransformer` in many sizes: `encode_query(texts, subnet="small")`.

    In the asymmetric mode a frozen tower encodes documents, and queries at the full size; an elastic one encodes queries at
    the smaller sizes, each with a linear head where it has a name. One index serves all of them. In the symmetric mode queries
    and documents are encoded by one elastic tower, and each size wants an index of its own.

    Query towers that are smaller than the document tower: ElasticLM (arXiv 2311.07204) keeps the passage tower and the index at
    full size. The heads and the frozen second tower are ours.

    Raises:
        UserError: there is no elastic model in what is loaded.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(router := self[0], Router) and SIZES in router.sub_modules:
            path = args[0] if args else kwargs["model_name_or_path"]
            hub = {key: kwargs[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in kwargs}
            file = load_file_path(path, FILE_NAME, **hub)
            heads = None if file is None else SizeHeads.from_file(file, router.sub_modules[SIZES][1].get_embedding_dimension())
            self[0] = Towers.from_router(router, heads).to(self.device, self.dtype)
            self.eval()

    @property
    def mode(self) -> str:
        """ "asymmetric" or "symmetric"."""
        return "asymmetric" if isinstance(self[0], Towers) else "symmetric"

    @property
    def full_is_frozen(self) -> bool:
        """Whether training leaves the full size as it is: it is that of the documents."""
        return self.mode == "asymmetric"

    @property
    def last_module(self) -> nn.Module:
        """The module that gives the vectors of the sizes below the full one."""
        return self[0].sizes[-1] if self.mode == "asymmetric" else super().last_module

    def tower(self, task: str, subnet: str | Mapping | None = None) -> SentenceTransformer:
        """What encodes queries or documents at a size, as a plain `SentenceTransformer` that shares the weights.

        Args:
            task: "query" or "document".
            subnet: the size; None for the full one.

        Raises:
            UserError: no such size, or one for documents in the asymmetric mode.
        """
        name = self.name_of(subnet)
        if self.mode == "symmetric":
            modules = stock_modules(self.elastic_module.sized(name), list(self)[1:], name)
        elif name is None:
            modules = list(self[0].document)
        elif task == "document":
            raise no_size_for_documents(name)
        else:
            modules = stock_modules(self.elastic_module.sized(name), self[0].sizes[1:], name)
        return SentenceTransformer(modules=modules, device=str(self.device), **settings_of(self))


def elastic_sentence_transformer(
    model: str | SentenceTransformer,
    space: Mapping | Space | str | None = None,
    subnets: Mapping | None = None,
    *,
    mode: str = "asymmetric",
    heads: bool = True,
    layer_order: str | list[int] = "ends",
    importance: str | None = None,
    **kwargs,
) -> ElasticDenser:
    """Make a sentence-transformers model elastic.

    Args:
        model: a Hub id, a local folder, or a ready `SentenceTransformer` that starts with a `Transformer`.
        space: which sizes; as for `ElasticModel.from_base`.
        subnets: name -> size.
        mode: "asymmetric", one index for all sizes, or "symmetric", an index per size; see `ElasticDenser`.
        heads: whether each named size gets a linear head into the space of the full one; asymmetric only.
        layer_order: which layers a depth keeps; here "ends" by default: the pooled vectors are those of the last layer.
        importance: as for `ElasticModel.from_base`; but "none" by default in the symmetric mode, so that the full size answers
            bit by bit what the model did: in another order neurons add up to other last bits.
        **kwargs: for `SentenceTransformer`, where `model` is a name.

    Raises:
        UserError: an unknown mode, or modules that do not start with a Transformer and a pooling, or that fit one width only
            where the space has several (symmetric); or see `ElasticModel.from_base`.
    """
    if mode not in MODES:
        raise UserError(f"mode: {mode!r} is unknown; known: {', '.join(MODES)}")
    stock = model if isinstance(model, SentenceTransformer) else SentenceTransformer(model, **kwargs)
    first, *rest = stock
    if not isinstance(first, Transformer) or not rest:
        name = model if isinstance(model, str) else "model"
        raise UserError(f"{name}: its modules are {', '.join(type(m).__name__ for m in stock)}; need a Transformer and a pooling")
    base = copy.deepcopy(first.model) if mode == "asymmetric" else first.model
    importance = "none" if importance is None and mode == "symmetric" else importance
    elastic = ElasticModel.from_base(base, space=space, subnets=subnets, layer_order=layer_order, importance=importance)
    sized = with_model(first, elastic, ElasticTransformer)
    modules = [sized, *rest]
    if (
        mode == "symmetric"
        and len(elastic.space.get("hidden_size", ())) > 1
        and any(True for one in rest for _ in one.parameters())
    ):
        raise UserError("space: hidden_size, but modules after the pooling have weights for one width; leave it out")
    if mode == "asymmetric":
        pooling, *others = copy.deepcopy(rest)
        dimension, full = pooling.get_embedding_dimension(), first.get_embedding_dimension()
        widths = {}
        if heads:  # several poolings side by side are so many times as wide
            widths = {name: elastic.view(name).config.hidden_size * dimension // full for name in elastic.config.subnets}
        head = [SizeHeads(widths, dimension).to(stock.dtype)] if widths else []
        modules = [Towers([first, *rest], [sized, pooling, *head, *others])]
    return ElasticDenser(modules=modules, device=str(stock.device), **settings_of(stock))
