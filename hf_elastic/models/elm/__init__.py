"""ELM: a compact encoder or decoder whose layers are each of one of several block types, with sizes per layer."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig

from .configuration_elm import ElmConfig

if TYPE_CHECKING:
    from .modeling_elm import (
        ElmForCausalLM,
        ElmForMaskedLM,
        ElmForQuestionAnswering,
        ElmForSequenceClassification,
        ElmForTokenClassification,
        ElmModel,
    )

__all__ = [
    "ElmConfig",
    "ElmForCausalLM",
    "ElmForMaskedLM",
    "ElmForQuestionAnswering",
    "ElmForSequenceClassification",
    "ElmForTokenClassification",
    "ElmModel",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".modeling_elm", __name__), name)


def _register_models() -> None:
    from .modeling_elm import register

    register()


AutoConfig.register(ElmConfig.model_type, ElmConfig, exist_ok=True)
ElmConfig.before_first = _register_models
