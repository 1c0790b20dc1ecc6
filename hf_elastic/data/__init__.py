"""Data sets and pretrained weights which the rest of the package trains and measures with."""

from .docstrings import build_docstrings
from .loading import (
    check_labels,
    columns_of,
    encode_labels,
    load_text_dataset,
    tokenize_classification,
    tokenize_language_modeling,
)

__all__ = [
    "build_docstrings",
    "check_labels",
    "columns_of",
    "encode_labels",
    "load_text_dataset",
    "minilm_path",
    "tokenize_classification",
    "tokenize_language_modeling",
]


def __getattr__(name: str):
    # `python -m hf_elastic.data.minilm` would warn if the package had imported the module before it runs.
    if name == "minilm_path":
        from .minilm import minilm_path

        return minilm_path
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
