"""ELM: a compact encoder or decoder whose layers are each of one of several block types, with sizes per layer."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig

from .configuration_elm import ElmConfig

if TYPE_CHECKING:
    from .classifiers import ElmForQuestionAnswering, ElmForSequenceClassification, ElmForTokenClassification
    from .modeling_elm import ElmForCausalLM, ElmForMaskedLM, ElmModel

__all__ = [
    "ElmConfig",
    "ElmForCausalLM",
    "ElmForMaskedLM",
    "ElmForQuestionAnswering",
    "ElmForSequenceClassification",
    "ElmForTokenClassification",
    "ElmModel",
]

# What follows AutoModel and Elm in the names of the classes; without a head the name is ElmModel.
HEADS = ("", "ForCausalLM", "ForMaskedLM", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification")


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "modeling_elm" if name in ("ElmModel", "ElmForCausalLM", "ElmForMaskedLM") else "classifiers"
    return getattr(import_module(f".{module}", __name__), name)


def _register_models() -> None:
    """Make the models known to the Auto classes; the config is already."""
    from transformers.models.auto import modeling_auto

    for head in HEADS:
        auto = getattr(modeling_auto, f"AutoModel{head}")
        auto.register(ElmConfig, __getattr__(f"Elm{head or 'Model'}"), exist_ok=True)
    # Trainer looks here for whose labels it has to shift when it smooths them.
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[ElmConfig.model_type] = "ElmForCausalLM"


AutoConfig.register(ElmConfig.model_type, ElmConfig, exist_ok=True)
ElmConfig.before_first = _register_models
