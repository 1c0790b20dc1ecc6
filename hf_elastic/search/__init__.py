"""Find the sizes of a supernet that are worth having on the machine that will run them."""

from importlib import import_module

# Imported when they are first used: `COMMAND --help` needs `search.config`, and not Optuna.
_LAZY = {
    "Frontier": ".frontier",
    "Latency": "..measure.latency",
    "Objective": ".objectives",
    "Point": ".point",
    "SearchConfig": ".config",
    "measure_latency": "..measure.latency",
    "search_subnets": ".search",
}

__all__ = ["Frontier", "Latency", "Objective", "Point", "SearchConfig", "measure_latency", "search_subnets"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
