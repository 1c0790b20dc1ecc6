"""hf_elastic: turn a Hugging Face transformer into one elastic model, train it once, ship any of its sizes."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig

from . import backbones as backbones
from . import models as models
from .core.configuration_elastic import ElasticConfig

if TYPE_CHECKING:
    from .core.modeling_elastic import (
        ElasticForCausalLM,
        ElasticForMaskedLM,
        ElasticForMultipleChoice,
        ElasticForQuestionAnswering,
        ElasticForSequenceClassification,
        ElasticForTokenClassification,
        ElasticModel,
    )
    from .core.space import Space, Subnet
    from .export import export_subnet
    from .search import Frontier, search_subnets
    from .training import ElasticTrainer, ElasticTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "ElasticConfig",
    "ElasticForCausalLM",
    "ElasticForMaskedLM",
    "ElasticForMultipleChoice",
    "ElasticForQuestionAnswering",
    "ElasticForSequenceClassification",
    "ElasticForTokenClassification",
    "ElasticModel",
    "ElasticTrainer",
    "ElasticTrainingArguments",
    "Frontier",
    "Space",
    "Subnet",
    "export_subnet",
    "search_subnets",
]

# Where the names are that are imported when they are first used: models and what works with them take seconds to import.
_MODULES = {
    "ElasticTrainer": "training",
    "ElasticTrainingArguments": "training",
    "Frontier": "search",
    "Space": "core.space",
    "Subnet": "core.space",
    "export_subnet": "export",
    "search_subnets": "search",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES.get(name, 'core.modeling_elastic')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_models() -> None:
    """Make the elastic models known to the Auto classes, and let them write cards: files that travel cannot import the rest."""
    from .core.modeling_elastic import ElasticPreTrainedModel, register

    register()
    ElasticPreTrainedModel.card_writer = staticmethod(_write_card)


def _write_card(*args, **kwargs) -> None:
    from .hub.cards import write_model_card

    write_model_card(*args, **kwargs)


AutoConfig.register(ElasticConfig.model_type, ElasticConfig, exist_ok=True)
ElasticConfig.register_for_auto_class()
ElasticConfig.before_first = _register_models
