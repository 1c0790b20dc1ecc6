"""Transformer-XL: relative positions, memory over segments, adaptive embedding and softmax, sizes per layer."""

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..code import write_code
from .configuration_transfo_xl import TransformerXLConfig

if TYPE_CHECKING:
    from .evaluation import SegmentEvaluation, evaluate_perplexity
    from .modeling_transfo_xl import TransformerXLForCausalLM, TransformerXLModel

__all__ = ["SegmentEvaluation", "TransformerXLConfig", "TransformerXLForCausalLM", "TransformerXLModel", "evaluate_perplexity"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "modeling_transfo_xl" if name.startswith("TransformerXL") else "evaluation"
    return getattr(import_module(f".{module}", __name__), name)


def _register_models() -> None:
    from .modeling_transfo_xl import register

    register()


# The model type and the class names are not transformers' own: 4.57 still has `transfo-xl` and `TransfoXLConfig`, its mappings
# go by class name too, and whoever asks there for the stock architecture gets it. transformers 5 has none; there `transfo-xl` is
# ours as well, so that the configs of released checkpoints are read.
AutoConfig.register(TransformerXLConfig.model_type, TransformerXLConfig, exist_ok=True)
if "transfo-xl" not in CONFIG_MAPPING:
    CONFIG_MAPPING.register("transfo-xl", TransformerXLConfig)
TransformerXLConfig.auto_classes = {
    "AutoConfig": "configuration_transfo_xl.TransformerXLConfig",
    "AutoModel": "modeling_transfo_xl.TransformerXLModel",
    "AutoModelForCausalLM": "modeling_transfo_xl.TransformerXLForCausalLM",
}
TransformerXLConfig.write_code = partial(write_code, package=__name__, classes=TransformerXLConfig.auto_classes.values())
TransformerXLConfig.before_first = _register_models
