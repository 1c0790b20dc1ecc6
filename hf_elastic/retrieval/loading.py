"""Loading models for retrieval: those with sizes, and those of sentence-transformers as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.util import load_file_path

from ..core.configuration_elastic import ElasticConfig
from ..core.errors import UserError
from ..utils.sentence_transformers import MODULES, SETTINGS
from .denser import ElasticDenser
from .fingerprint import Fingerprint, fingerprint_of
from .ranker import ElasticRanker
from .results import size_argument
from .towers import SIZES


def load_denser(path: str | Path, device: str | None = None) -> SentenceTransformer:
    """A model that encodes queries and documents; an `ElasticDenser` where it has sizes.

    Args:
        path: a folder, or a name on the Hub.
        device: for torch; default: the best one that is free for this process.

    Raises:
        UserError: it is no model that sentence-transformers can load, or a CrossEncoder, which has no vectors.
    """
    if _read(path, SETTINGS).get("model_type") == "CrossEncoder":
        raise UserError(f"model: {path} is a CrossEncoder, which scores pairs; needed is a model that encodes texts")
    return _load(ElasticDenser if _has_sizes(path) else SentenceTransformer, path, device)


def document_tower(model: SentenceTransformer, subnet: str | Mapping | None = None) -> SentenceTransformer:
    """What encodes documents at a size; without sizes the model itself.

    Raises:
        UserError: no such size, one for documents in the asymmetric mode, or a model without sizes.
    """
    if isinstance(model, ElasticDenser):
        return model.tower("document", subnet)
    size_argument(model, subnet, "subnet")
    return model


def index_tower(model: SentenceTransformer, subnet: str | Mapping | None = None) -> SentenceTransformer:
    """What fills the index to which queries of a size go: in the asymmetric mode the full size. Errors are `document_tower`'s.

    In the query mode that is not in the model, which stands for it.
    """
    if not isinstance(model, ElasticDenser) or model.mode == "symmetric":
        return document_tower(model, subnet)
    model.name_of(subnet)  # refused if there is no such size
    return model if model.mode == "query" else model.tower("document")


def index_fingerprint(model: SentenceTransformer) -> Fingerprint:
    """The fingerprint of the document tower for whose index a model encodes queries."""
    aligned_to = model.aligned_to if isinstance(model, ElasticDenser) else None
    return fingerprint_of(model) if aligned_to is None else aligned_to


def load_ranker(path: str | Path, device: str | None = None) -> CrossEncoder:
    """A model that scores pairs of a query and a document; an `ElasticRanker` where it has sizes. As `load_denser`.

    Raises:
        UserError: also where there is no head that gives scores: sentence-transformers would make a random one.
    """
    kind, head = _read(path, SETTINGS).get("model_type", "SentenceTransformer"), "CrossEncoder"
    if not _read(path, MODULES):  # an encoder or a classifier of transformers
        kind = (_read(path, "config.json").get("architectures") or [head])[0]
    if not kind.endswith((head, "ForSequenceClassification", "ForCausalLM")):
        raise UserError(f"ranker: {path} is a {kind}, which has no head that scores a pair; needed is a CrossEncoder")
    return _load(ElasticRanker if _has_sizes(path) else CrossEncoder, path, device)


def _load(kind: type, path: str, device: str | None) -> SentenceTransformer | CrossEncoder:
    try:
        return kind(str(path), device=device)  # theirs takes no Path
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:  # such as a damaged file
        raise UserError(f"model: {path!r} cannot be loaded: {' '.join(str(error).split())}") from error


def _has_sizes(path: str) -> bool:
    router, config = _read(path, Router.config_file_name), _read(path, "config.json")
    return SIZES in router.get("structure", {}) or config.get("model_type") == ElasticConfig.model_type


def _read(path: str, name: str) -> dict:
    try:
        file = load_file_path(path, name)
        return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what is wrong with it is said when it is loaded
        return {}
