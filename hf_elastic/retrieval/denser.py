"""`ElasticDenser`: a `SentenceTransformer` whose sizes answer for one index."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import load_file_path
from torch import nn

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..core.modeling_elastic import ElasticModel
from ..core.space import Space
from ..utils.files import reading
from .elastic import ElasticMixin, settings_of
from .fingerprint import Fingerprint
from .heads import FILE_NAME, SizeHeads, no_documents, stock_modules
from .towers import SIZES, Towers, no_size_for_documents
from .transformer import ElasticTransformer, with_model

MODES = ("asymmetric", "symmetric", "query")
HEADS = 2  # the place of the heads in the query mode
CARD = """
## Queries only

This is an `ElasticDenser` of [hf_elastic](https://github.com/hf-elastic/hf_elastic) for queries alone. Its vectors go to indexes
of the document tower of `{documents}`, and to no others; documents are encoded with that model. Sizes: {sizes}.

```python
from hf_elastic.retrieval import ElasticDenser

model = ElasticDenser("{name}")
queries = model.encode_query(["a question"], subnet="{size}")
```
"""
ALIGNED_TO = "document_tower.json"  # beside modules.json: the fingerprint of a document tower that is not in the model


class ElasticDenser(ElasticMixin, SentenceTransformer):
    """A `SentenceTransformer` in many sizes: `encode_query(texts, subnet="small")`.

    In the asymmetric mode a frozen tower encodes documents, and queries at the full size; an elastic one encodes queries at
    the smaller sizes, each with a linear head where it has a name. One index serves all of them. In the symmetric mode queries
    and documents are encoded by one elastic tower, and each size wants an index of its own. In the query mode there is an elastic
    tower for queries alone, of another backbone or width than that of the documents, of which the model has the fingerprint: it
    answers for an index that this tower has filled, and for no other.

    Attributes:
        aligned_to: the fingerprint of the document tower in the query mode; else None.

    Query towers that are smaller than the document tower: ElasticLM (arXiv 2311.07204) keeps the passage tower and the index at
    full size. The heads and the frozen second tower are ours.

    Raises:
        UserError: there is no elastic model in what is loaded.
    """

    aligned_to: Fingerprint | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (path := args[0] if args else kwargs.get("model_name_or_path")) is None:
            return
        hub = {key: kwargs[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in kwargs}
        if isinstance(router := self[0], Router) and SIZES in router.sub_modules:
            file = load_file_path(path, FILE_NAME, **hub)
            heads = None if file is None else SizeHeads.from_file(file, router.sub_modules[SIZES][1].get_embedding_dimension())
            self[0] = Towers.from_router(router, heads).to(self.device, self.dtype)
        elif (file := load_file_path(path, ALIGNED_TO, **hub)) is not None:
            with reading(file, "fingerprint of a document tower", "is no fingerprint of a document tower"):
                self.aligned_to = Fingerprint(**json.loads(Path(file).read_text(encoding="utf-8")))
                dimension = self.aligned_to.parts["dimension"]
            name = f"{HEADS}_{SizeHeads.__name__}/{FILE_NAME}"
            if (file := load_file_path(path, name, **hub)) is None:
                raise UserError(f"{path}: its {name} is missing")
            self[HEADS] = SizeHeads.from_file(file, dimension).to(self.device, self.dtype)
        self.eval()

    @property
    def mode(self) -> str:
        """ "asymmetric", "symmetric" or "query"."""
        if self.aligned_to is not None:
            return "query"
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
            UserError: no such size, one for documents in the asymmetric mode, or documents in the query mode.
        """
        name = self._check(task, subnet)
        if self.mode != "asymmetric":
            modules = stock_modules(self.elastic_module.sized(name), list(self)[1:], name)
        elif name is None:
            modules = list(self[0].document)
        else:
            modules = stock_modules(self.elastic_module.sized(name), self[0].sizes[1:], name)
        return SentenceTransformer(modules=modules, device=str(self.device), **settings_of(self))

    def encode(self, *args, subnet: str | Mapping | None = None, **kwargs):
        """As `SentenceTransformer.encode`, at a size; `encode_query` and `encode_document` come here too.

        Raises:
            UserError: as by `tower`, also where there are no texts.
        """
        self._check(kwargs.get("task"), subnet)
        return super().encode(*args, subnet=subnet, **kwargs)

    def save(self, path: str, *args, **kwargs) -> None:
        """As sentence-transformers saves; in the query mode with the fingerprint of the document tower."""
        super().save(path, *args, **kwargs)
        if self.aligned_to is not None:
            Path(path, ALIGNED_TO).write_text(json.dumps(asdict(self.aligned_to), indent=2) + "\n", encoding="utf-8")

    def _create_model_card(self, path: str, *args, **kwargs) -> None:
        if self.aligned_to is not None:
            self.model_card_data.ir_model = False  # what is said of such models encodes documents
        super()._create_model_card(path, *args, **kwargs)
        card = Path(path, "README.md")
        if self.aligned_to is None or not card.is_file() or "## Queries only" in (text := card.read_text(encoding="utf-8")):
            return
        sizes = [FULL, *self.subnets]
        name = self.model_card_data.model_id or self._model_card_model_id_placeholder
        section = CARD.format(documents=self.aligned_to.name, sizes=", ".join(sizes), name=name, size=sizes[-1])
        card.write_text(text.replace("\n## Model Details", f"{section}\n## Model Details", 1), encoding="utf-8")

    def _check(self, task: str | None, subnet: str | Mapping | None) -> str | Mapping | None:
        """A size by its name where it has one, None for the full one; refused where it cannot do the task."""
        name = self.name_of(subnet)
        if task == "document" and self.mode == "query":
            raise no_documents()
        if task == "document" and self.mode == "asymmetric" and name is not None:
            raise no_size_for_documents(name)
        return name


def elastic_sentence_transformer(
    model: str | SentenceTransformer,
    space: Mapping | Space | str | None = None,
    subnets: Mapping | None = None,
    *,
    mode: str = "asymmetric",
    aligned_to: Fingerprint | None = None,
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
        mode: "asymmetric", one index for all sizes, "symmetric", an index per size, or "query", queries alone for the index of
            another model; see `ElasticDenser`. The last takes the transformer and the pooling of `model`, and gives each named
            size and the full one a linear head, which `retrieval.align.align` trains.
        aligned_to: mode "query" only: the fingerprint of the document tower, of `fingerprint_of(its model)` or an `Index`.
        heads: whether each named size gets a linear head into the space of the full one; asymmetric only.
        layer_order: which layers a depth keeps; here "ends" by default: the pooled vectors are those of the last layer.
        importance: as for `ElasticModel.from_base`; but "none" by default in the symmetric mode, so that the full size answers
            bit by bit what the model did: in another order neurons add up to other last bits.
        **kwargs: for `SentenceTransformer`, where `model` is a name.

    Raises:
        UserError: an unknown mode, or modules that do not start with a Transformer and a pooling, or that fit one width only
            where the space has several (symmetric); a space that does not reach up to the full size, or no fingerprint (query);
            or see `ElasticModel.from_base`.
    """
    if mode not in MODES:
        raise UserError(f"mode: {mode!r} is unknown; known: {', '.join(MODES)}")
    if (mode == "query") != (aligned_to is not None):
        raise UserError("aligned_to: the fingerprint of a document tower goes with mode 'query', which needs it")
    stock = model if isinstance(model, SentenceTransformer) else SentenceTransformer(model, **kwargs)
    first, *rest = stock
    if not isinstance(first, Transformer) or not rest or (mode == "query" and not isinstance(rest[0], Pooling)):
        name = model if isinstance(model, str) else "model"
        raise UserError(f"{name}: its modules are {', '.join(type(m).__name__ for m in stock)}; need a Transformer and a pooling")
    base = first.model if mode == "symmetric" else copy.deepcopy(first.model)
    importance = "none" if importance is None and mode == "symmetric" else importance
    elastic = ElasticModel.from_base(base, space=space, subnets=subnets, layer_order=layer_order, importance=importance)
    elastic.config._name_or_path = first.model.config._name_or_path  # where losses and model cards look for it
    sized = with_model(first, elastic, ElasticTransformer)
    modules = [sized, *rest]
    if (
        mode == "symmetric"
        and len(elastic.space.get("hidden_size", ())) > 1
        and any(True for one in rest for _ in one.parameters())
    ):
        raise UserError("space: hidden_size, but modules after the pooling have weights for one width; leave it out")
    settings = settings_of(stock)
    if mode != "symmetric":
        pooling, *others = copy.deepcopy(rest)
        dimension, full = pooling.get_embedding_dimension(), first.get_embedding_dimension()
        names = [*([FULL] if mode == "query" else []), *(elastic.config.subnets if heads or mode == "query" else [])]
        # Several poolings side by side are so many times as wide.
        widths = {name: elastic.view(name).config.hidden_size * dimension // full for name in names}
    if mode == "asymmetric":
        head = [SizeHeads(widths, dimension).to(stock.dtype)] if widths else []
        modules = [Towers([first, *rest], [sized, pooling, *head, *others])]
    if mode == "query":
        if elastic.resolve(elastic.space.largest) != elastic.resolve(None):
            raise UserError("space: it does not reach up to the full size, which is trained too; add the full values")
        head = SizeHeads(widths, aligned_to.parts["dimension"]).to(stock.dtype)
        modules = [sized, pooling, head, *([Normalize()] if aligned_to.parts["normalised"] else [])]
        settings["truncate_dim"] = None
    denser = ElasticDenser(modules=modules, device=str(stock.device), **settings)
    denser.aligned_to = aligned_to
    return denser
