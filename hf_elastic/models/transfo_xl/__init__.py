"""Transformer-XL: relative positions, memory over segments, adaptive embedding and softmax, sizes per layer."""

from .configuration_transfo_xl import TransformerXLConfig
from .evaluation import SegmentEvaluation, evaluate_perplexity
from .modeling_transfo_xl import TransformerXLForCausalLM, TransformerXLModel, register

__all__ = [
    "SegmentEvaluation",
    "TransformerXLConfig",
    "TransformerXLForCausalLM",
    "TransformerXLModel",
    "evaluate_perplexity",
    "register",
]
