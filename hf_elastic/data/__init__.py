"""Data sets and pretrained weights which the rest of the package trains and measures with."""

from importlib import import_module

# Imported when they are first used: data sets are slow to import, and `python -m hf_elastic.data.minilm` would warn.
_LAZY = {
    "build_docstrings": "docstrings",
    "calibration_batches": "calibration",
    "columns_of": "loading",
    "encode_labels": "labels",
    "load_text_dataset": "loading",
    "minilm_path": "minilm",
    "tokenize_classification": "loading",
    "tokenize_language_modeling": "loading",
}
__all__ = list(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
