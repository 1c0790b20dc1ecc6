"""`export_denser` and `export_ranker`: one size as plain sentence-transformers reads it, without hf_elastic."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer

from ..export.inputs import TEXTS
from ..export.parity import Tolerance, check_parity, compare, write_parity
from ..export.subnet import check_standard
from ..utils.folders import check_output, filled
from .denser import ElasticDenser
from .elastic import ElasticMixin, settings_of
from .heads import SizeHeads
from .ranker import ElasticRanker
from .transformer import with_model

TOLERANCE = Tolerance(max_relative_difference=1e-5)


def export_denser(
    model: ElasticDenser,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    *,
    texts: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a size of a denser as a stock `SentenceTransformer`.

    In the asymmetric mode it is a `Router` with a small tower for queries (`encode_query`) and the full one for documents
    (`encode_document`, and `encode`), the linear head as `Dense`; in the symmetric mode one tower of that size.

    Args:
        model: the denser.
        subnet: a name, a size, or None for the full one.
        output_dir: an empty or new folder, unless `overwrite`.
        texts: what the file is compared on with the model that it came from; default: a few of our own.
        overwrite: replace what is in `output_dir`.

    Returns:
        What `parity.json` says.

    Raises:
        UserError: no such size, one that is not standard (the message names the nearest that is), or a folder that is not empty.
        ParityError: what was written gives other vectors than the model. Nothing is left then.
    """
    name = model.name_of(subnet)
    texts = list(texts or TEXTS)

    def vectors(one: SentenceTransformer, **size) -> np.ndarray:
        return np.concatenate([one.encode_query(texts, **size), one.encode_document(texts, **_of_documents(model, size))])

    return _export(model, name, output_dir, lambda: _stock_denser(model, name), vectors, texts, overwrite)


def export_ranker(
    model: ElasticRanker,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a size of a ranker as a stock `CrossEncoder`.

    Args:
        model: the ranker.
        subnet: a name, a size, or None for the full one.
        output_dir: an empty or new folder, unless `overwrite`.
        pairs: (query, document) that the file is compared on with the model that it came from; default: a few of our own.
        overwrite: replace what is in `output_dir`.

    Returns:
        What `parity.json` says.

    Raises:
        UserError: no such size, one that is not standard (the message names the nearest that is), or a folder that is not empty.
        ParityError: what was written gives other scores than the model. Nothing is left then.
    """
    name = model.name_of(subnet)
    pairs = [list(pair) for pair in (pairs or zip(TEXTS, reversed(TEXTS)))]

    def scores(one: CrossEncoder, **size) -> np.ndarray:
        return one.predict(pairs, **size)

    return _export(model, name, output_dir, lambda: _stock_ranker(model, name), scores, pairs, overwrite)


def _export(model: ElasticMixin, name, output_dir, make, compute, inputs: list, overwrite: bool) -> dict[str, Any]:
    check_standard(model.elastic, name)
    where = {"overwrite": overwrite, "inputs": {"the folder of the model": model.elastic.name_or_path}}
    check_output(output_dir, **where)
    expected = compute(model, subnet=name)
    with filled(output_dir, **where) as staging:
        stock = make()
        stock.save_pretrained(str(staging))
        comparison = compare(expected, compute(type(stock)(str(staging), device=str(model.device))))
        check_parity(comparison, TOLERANCE)
        return write_parity(staging / "parity.json", "sentence-transformers", comparison, inputs, TOLERANCE)


def _of_documents(model: ElasticDenser, size: Mapping) -> Mapping:
    return {} if model.mode == "asymmetric" else size


def _stock_denser(model: ElasticDenser, name) -> SentenceTransformer:
    if model.mode == "symmetric":
        modules = _extracted(model, name, list(model))
    elif name is None:
        modules = list(model[0].document)
    else:
        modules = [Router.for_query_document(_extracted(model, name, list(model[0].sizes)), list(model[0].document))]
    return SentenceTransformer(modules=modules, device=str(model.device), **settings_of(model))


def _stock_ranker(model: ElasticRanker, name) -> CrossEncoder:
    return CrossEncoder(modules=_extracted(model, name, list(model)), device=str(model.device), **settings_of(model))


def _extracted(model: ElasticMixin, name, modules: Sequence) -> list:
    """The modules with a stock model of a size in the first, and stock ones for what depends on its width."""
    first, *rest = modules
    stock = with_model(first, model.elastic.extract(name), Transformer)
    extracted = [stock]
    for module in rest:
        if isinstance(module, SizeHeads):
            if (module := module.as_dense(name)) is None:
                continue
        elif getattr(module, "embedding_dimension", None) not in (None, stock.get_embedding_dimension()):
            module = copy.copy(module)
            ratio = module.pooling_output_dimension // module.embedding_dimension
            module.embedding_dimension = stock.get_embedding_dimension()
            module.pooling_output_dimension = ratio * module.embedding_dimension
        extracted.append(module)
    return extracted
