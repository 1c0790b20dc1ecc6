"""hf_elastic: turn a Hugging Face transformer into one elastic model, train it once, ship any of its sizes."""

from importlib import import_module

from . import backbones as backbones
from . import models
from .core.configuration_elastic import ElasticConfig
from .core.modeling_elastic import (
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForMultipleChoice,
    ElasticForQuestionAnswering,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticModel,
    ElasticPreTrainedModel,
    register,
)
from .core.space import Space, Subnet

__version__ = "0.1.0"

# Names that pull in optional or heavy packages are imported when they are first used.
_LAZY = {
    "ElasticTrainer": "training",
    "ElasticTrainingArguments": "training",
    "Frontier": "search",
    "export_subnet": "export",
    "search_subnets": "search",
}

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

register()
models.register()


def _write_card(*args, **kwargs) -> None:
    from .hub.cards import write_model_card

    write_model_card(*args, **kwargs)


# The flat files that travel with a checkpoint cannot import the rest of the package.
ElasticPreTrainedModel.card_writer = staticmethod(_write_card)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
