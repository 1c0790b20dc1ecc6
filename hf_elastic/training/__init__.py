"""Train many sizes at once."""

from importlib import import_module

# Imported when they are first used: the command line reads the arguments alone to print its help.
_LAZY = {"ElasticTrainer": "trainer", "ElasticTrainingArguments": "arguments"}
__all__ = list(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
