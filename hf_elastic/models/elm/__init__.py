"""ELM: a compact encoder or decoder whose layers are each of one of several block types, with sizes per layer."""

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig

from ..code import write_code
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
    return getattr(import_module(f".{_module_of(name)}", __name__), name)


def _module_of(name: str) -> str:
    return "modeling_elm" if name in ("ElmModel", "ElmForCausalLM", "ElmForMaskedLM") else "classifiers"


def _register_models() -> None:
    """Make the models known to the Auto classes; the config is already."""
    from transformers.models.auto import modeling_auto

    for head, name in CLASSES.items():
        getattr(modeling_auto, f"AutoModel{head}").register(ElmConfig, __getattr__(name), exist_ok=True)
    # Trainer looks here for whose labels it has to shift when it smooths them.
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[ElmConfig.model_type] = "ElmForCausalLM"


CLASSES = {head: f"Elm{head or 'Model'}" for head in HEADS}
ElmConfig.auto_classes = {"AutoConfig": "configuration_elm.ElmConfig"} | {
    f"AutoModel{head}": f"{_module_of(name)}.{name}" for head, name in CLASSES.items()
}
ElmConfig.write_code = partial(write_code, package=__name__, classes=ElmConfig.auto_classes.values())
AutoConfig.register(ElmConfig.model_type, ElmConfig, exist_ok=True)
ElmConfig.before_first = _register_models
