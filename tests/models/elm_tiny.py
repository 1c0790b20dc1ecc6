"""Tiny ELMs for the tests."""

import torch
from tiny import VOCAB, randomize
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_elastic.models.elm import ElmConfig

TINY = {
    "vocab_size": VOCAB, "embedding_size": 20, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BLOCKS = ["bert", "mobilebert"]
KINDS = {
    "bert": "bert",
    "mobilebert": "mobilebert",
    "mixed": ["mobilebert", "bert", "mobilebert"],
    "supernet": [BLOCKS],
}
UNEQUAL = {"block_type": KINDS["mixed"], "num_attention_heads": [2, 4, 1], "intermediate_size": [7, 48, 20]}


def config_of(**changes) -> ElmConfig:
    return ElmConfig(**{**TINY, **changes})


def causal_lm(**changes):
    """In evaluation mode, the same weights every time, large enough for mistakes to show."""
    torch.manual_seed(0)
    return randomize(AutoModelForCausalLM.from_config(config_of(is_decoder=True, **changes)))


def masked_lm(**changes):
    """As `causal_lm`."""
    torch.manual_seed(0)
    return randomize(AutoModelForMaskedLM.from_config(config_of(**changes)))


def tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def other(ids: torch.Tensor) -> torch.Tensor:
    """Another token in each place."""
    return torch.where(ids < VOCAB - 1, ids + 1, 5)
