"""Retrieval and reranking with sentence-transformers models in many sizes; `pip install hf-elastic[retrieval]`."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from ..core.errors import MissingPackageError

_MODULES = {
    "CorpusTexts": "pipeline",
    "ElasticDenser": "denser",
    "ElasticLoss": "losses",
    "ElasticRanker": "ranker",
    "Hit": "pipeline",
    "RetrievalPipeline": "pipeline",
    "elastic_cross_encoder": "ranker",
    "elastic_sentence_transformer": "denser",
    "export_denser": "export",
    "export_ranker": "export",
    "load_graph": "graph",
    "search_pipeline": "search",
}

__all__ = [
    "CorpusTexts",
    "ElasticDenser",
    "ElasticLoss",
    "ElasticRanker",
    "Hit",
    "RetrievalPipeline",
    "elastic_cross_encoder",
    "elastic_sentence_transformer",
    "export_denser",
    "export_ranker",
    "load_graph",
    "search_pipeline",
]


def check_installed() -> None:
    """Raise MissingPackageError unless sentence-transformers is there, in a version that this works with."""
    try:
        found = version("sentence-transformers")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith("6."):
        raise MissingPackageError(
            f"retrieval needs sentence-transformers 6, found {found}: run pip install 'hf-elastic[retrieval]'"
        )


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_installed()
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
