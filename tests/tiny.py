"""Tiny random models of every backbone, built by the stock classes."""

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, BertTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_elastic.core.spec import SPECS

VOCAB = 99
WORDS = [f"word{index}" for index in range(60)]
_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

_ALL = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "pad_token_id": 1},
    "xlm-roberta": {**_ENCODER, "pad_token_id": 1},
    "camembert": {**_ENCODER, "pad_token_id": 1},
    "ernie": {**_ENCODER, "use_task_id": True},
    "mpnet": {**_ENCODER, "pad_token_id": 1},
    "deberta-v2": {
        **_ENCODER, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0, "max_relative_positions": -1,
    },
    "nomic_bert": _ENCODER,
    "eurobert": {**_DECODER, "mask_token_id": 3},
    "distilbert": {
        "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCAB, "max_position_embeddings": 64
    },
    "electra": {**_ENCODER, "embedding_size": 20},
    "modernbert": {**_ENCODER, **_SPECIAL, "local_attention": 8},
    "gpt2": {
        "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48, "vocab_size": VOCAB, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    },
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": VOCAB,
        "max_position_embeddings": 64, "word_embed_proj_dim": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "gpt_neox": {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2},
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": 6},
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "phi3": {key: value for key, value in _DECODER.items() if key != "head_dim"},
    "gemma2": {**_DECODER, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "gemma3_text": {**_DECODER, "query_pre_attn_scalar": 8, "sliding_window": 6, "sliding_window_pattern": 2},
    "transformer_xl": {
        "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48, "vocab_size": VOCAB, "cutoffs": [30, 60], "div_val": 2,
        "mem_len": 64, "clamp_len": 0, "same_length": False, "dropout": 0.0,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "elm": {**_ENCODER, "embedding_size": 20, "block_type": ["bert", "mobilebert", "mobilebert", "bert"]},
    "smollm3": {**_DECODER, "no_rope_layer_interval": 2},
    "gemma": _DECODER,
    "granite": {**_DECODER, "embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "olmo": _DECODER,
    "stablelm": {key: value for key, value in _DECODER.items() if key != "head_dim"},
    "cohere2": {**_DECODER, "sliding_window": 6, "sliding_window_pattern": 2},
    "glm": _DECODER,
    "glm4": _DECODER,
    "phi": _DECODER,
    "starcoder2": {**_DECODER, "sliding_window": None},
}  # fmt: skip
# transformers 4.57 lacks some.
CONFIGS = {name: values for name, values in _ALL.items() if name in CONFIG_MAPPING}
# Those that plain transformers has in version 5 alone, and in both major versions.
NEWER = tuple(name for name in ("eurobert", "nomic_bert") if name in CONFIGS)
STOCK = tuple(name for name in CONFIGS if name not in ("transformer_xl", "elm", *NEWER))
# Those with a head for sequence classification.
CLASSIFIERS = tuple(name for name in CONFIGS if name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
ENCODERS = (
    "bert", "roberta", "xlm-roberta", "camembert", "ernie", "mpnet", "deberta-v2", "nomic_bert", "eurobert", "distilbert",
    "electra", "modernbert", "elm",
)  # fmt: skip
DECODERS = tuple(name for name in CONFIGS if name not in ENCODERS)
# One backbone for each Spec; what it says of sizes holds for the others with this Spec. What a layer may skip is no size.
FAMILIES = tuple({repr(replace(SPECS[name].with_skips(), model_types=())): name for name in reversed(CONFIGS)}.values())
GROUPED = tuple(name for name in CONFIGS if SPECS[name].heads == "kv group")


def backbones(names=CONFIGS) -> list:
    """Parameters of a test of backbones, or of cases named after them: one for each Spec is quick, the others are slow."""
    return [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in names]


def config_of(model_type: str, **changes):
    """A fresh tiny config."""
    return AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes})


def save_tokenizer(folder):
    """Write a tokenizer that knows `WORDS` to a folder, before a model is saved there; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def space_of(model_type: str, *, hidden: bool = True) -> dict:
    """A space over every axis, heads and feed-forward width chosen per layer."""
    space = {
        "num_hidden_layers": [1, 2, 3, 4],
        "num_attention_heads": [1, 2, 3, 4],
        "intermediate_size": [7, 16, 33, 48],
        "per_layer": ["num_attention_heads", "intermediate_size"],
    }
    if model_type in GROUPED:
        space["num_attention_heads"] = [1, 2, 4]
        space["num_key_value_heads"] = [1, 2]
        space["per_layer"].append("num_key_value_heads")
    if model_type == "mpnet":  # its heads have a table outside the layers
        space["per_layer"].remove("num_attention_heads")
    if hidden:
        space["hidden_size"] = [16, 24, 32]
    if model_type == "elm":  # its heads partition a width, and dropping none changes what all compute
        del space["num_attention_heads"]
        space["per_layer"].remove("num_attention_heads")
        space.update({"hidden_size": [16, 32]} if hidden else {})
    return space


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter, biases and norms included, a random value: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def decisive(model: torch.nn.Module) -> torch.nn.Module:
    """A randomized BERT classifier whose classes depend on its words, and are no near ties that int8 may decide either way."""
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(5)
        model.classifier.weight.mul_(10)
    return model


def batch(length: int = 9, rows: int = 3, seed: int = 0, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Random token ids with padding on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        padded = slice(0, row) if left else slice(length - row, length)
        ids[row, padded], mask[row, padded] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}
