"""Small elastic models to measure; those without changes are made once, and tests leave them as they are."""

import functools

import tiny
import torch
from transformers import BertForSequenceClassification, GPT2LMHeadModel

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification

SPACE = {"num_hidden_layers": [1, 2, 3, 4], "intermediate_size": [16, 48], "num_attention_heads": [2, 4]}


@functools.cache
def classifier(**changes):
    torch.manual_seed(0)
    base = tiny.randomize(BertForSequenceClassification(tiny.config_of("bert", num_labels=3, **changes)))
    return ElasticForSequenceClassification.from_base(base, space=SPACE, subnets={"small": {"num_hidden_layers": 2}})


@functools.cache
def decoder():
    torch.manual_seed(0)
    base = tiny.randomize(GPT2LMHeadModel(tiny.config_of("gpt2")))
    return ElasticForCausalLM.from_base(base, space=SPACE)
