"""Elastic models whose layers may skip attention or the feed-forward, and their twins in which what is skipped adds zeros."""

import copy
import random
import re

import pytest
import torch
from tiny import CONFIGS, ENCODERS, GROUPED, config_of, randomize
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM
from hf_elastic.core.spec import SKIP, SPECS

AXES = ("attention", "mlp")
BACKBONES = tuple(name for name in CONFIGS if SPECS[name].choices and all(map(SPECS[name].can_skip, SPECS[name].choices)))
DECODERS = tuple(name for name in BACKBONES if name not in ENCODERS)
# One for each way of skipping; those of which layers differ in the kind of their attention have a cache of several kinds.
QUICK = ("bert", "gpt2", "gpt_neox", "llama", "gemma2", "cohere2")
SPACE = {
    "num_hidden_layers": [1, 2, 3, 4],
    "attention": ["full", "skip"],
    "mlp": ["full", "skip"],
    "per_layer": ["attention", "mlp"],
}
SIZES = (
    {"attention": ["skip", "full", "full", "full"], "mlp": ["full", "skip", "full", "skip"]},
    {"attention": ["full", "skip", "skip", "full"], "mlp": ["skip", "skip", "full", "full"]},
    {"attention": ["skip", "skip", "full", "skip"]},
)
# What writes to the residual stream.
WRITES = {
    "attention": r"(o_proj|self_attn\.dense|attention\.output\.dense|attn\.c_proj|attention\.dense)$",
    "mlp": r"(down_proj|mlp\.c_proj|dense_4h_to_h|^output\.dense)$",
}


def backbones(names=BACKBONES):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def stock(name, **changes):
    auto = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    return randomize(auto.from_config(config_of(name, attn_implementation="eager", **changes)))


def skipping(name, space=SPACE, importance="none", base=None, **options):
    kind = ElasticForMaskedLM if name in ENCODERS else ElasticForCausalLM
    return kind.from_base(base or stock(name), space=space, importance=importance, **options)


def space_with_widths(name):
    space = {**SPACE, "intermediate_size": [7, 33, 48], "num_attention_heads": [2, 4], "hidden_size": [16, 32]}
    space["per_layer"] = ["attention", "mlp", "intermediate_size", "num_attention_heads"]
    if name in GROUPED:
        space |= {"num_key_value_heads": [1, 2], "per_layer": [*space["per_layer"], "num_key_value_heads"]}
    return space


def subnets_of(model, count):
    generator = random.Random(0)
    return [*SIZES, *(model.space.sample(generator) for _ in range(count))]


@torch.no_grad()
def adding_zeros(base, size):
    """A stock model in which what a size skips is computed and comes to nothing."""
    twin = copy.deepcopy(base)
    for name, module in twin.named_modules():
        inside = re.search(r"\.(?:layers?|h)\.(\d+)\.(.*)$", name)
        for axis, choices in size.items() if inside else ():
            if choices[int(inside[1])] == SKIP and re.search(WRITES[axis], inside[2]):
                module.weight.zero_()
                if module.bias is not None:
                    module.bias.zero_()
    return twin
