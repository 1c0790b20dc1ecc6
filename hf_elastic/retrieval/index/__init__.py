"""An index of documents that knows the model that filled it."""

from importlib import import_module

# Imported when they are first used: `COMMAND --help` needs `index.config`, and not sentence-transformers.
_LAZY = {"Index": ".index", "IndexConfig": ".config"}

__all__ = ["Index", "IndexConfig"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
