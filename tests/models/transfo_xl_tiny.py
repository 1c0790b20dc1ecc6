"""Tiny Transformer-XLs for the tests."""

import pytest
import torch
from tiny import randomize

from hf_elastic.models.transfo_xl import TransformerXLConfig, TransformerXLForCausalLM

VOCAB = 60
TINY = {
    "vocab_size": VOCAB, "cutoffs": [10, 25, 45], "d_model": 32, "n_head": 4, "d_inner": 48, "div_val": 2, "n_layer": 3,
    "mem_len": 64, "clamp_len": 0, "same_length": False, "dropout": 0.0,
}  # fmt: skip
PER_LAYER = {"n_head": [2, 8, 4], "d_inner": [20, 48, 7]}
KINDS = {
    "one table": {"div_val": 1},
    "one table, projected": {"div_val": 1, "d_embed": 20},
    "tables of half width": {"div_val": 2},
    "tables of quarter width": {"div_val": 4, "d_embed": 64},
    "all projections tied": {"tie_projs": [True] * 4},
    "nothing tied": {"tie_word_embeddings": False, "proj_share_all_but_first": False},
    "projections tied alone": {"tie_word_embeddings": False},
    "not adaptive": {"adaptive": False, "cutoffs": None, "div_val": 1},
    "shared position biases": {"untie_r": False},
    "sizes per layer": PER_LAYER,
    "normalised inputs": {"pre_lnorm": True},
}
QUICK = ("one table, projected", "tables of quarter width", "sizes per layer")
every_kind = pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, changes in KINDS.items()],
)


def config_of(**changes) -> TransformerXLConfig:
    return TransformerXLConfig(**{**TINY, **changes})


def model_of(**changes) -> TransformerXLForCausalLM:
    """In evaluation mode, the same weights every time, large enough for mistakes to show."""
    torch.manual_seed(0)
    return randomize(TransformerXLForCausalLM(config_of(**changes)))


def tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """A part of a model on its own: only whole models initialise their parameters."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()
