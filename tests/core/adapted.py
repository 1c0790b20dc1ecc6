"""Elastic models with a LoRA adapter of peft."""

import random

import torch
from peft import LoraConfig, get_peft_model
from tiny import batch, config_of, randomize, space_of

from hf_elastic import ElasticForSequenceClassification

# Fused matrices, grouped queries, Conv1D, feed-forward and embeddings; "dense" of BERT and GPT-NeoX is several modules.
TARGETS = {
    "bert": ["query", "value", "dense", "word_embeddings"],
    "deberta-v2": ["query_proj", "key_proj", "dense"],
    "distilbert": ["q_lin", "out_lin", "lin1", "lin2"],
    "electra": ["query", "embeddings_project", "word_embeddings"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "wte"],
    "opt": ["q_proj", "out_proj", "fc2", "project_in"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "embed_tokens"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h"],
    "gemma3_text": ["q_proj", "embed_tokens"],
}
TOLERANCE = 1e-5
SMALL = {"num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 2, "hidden_size": 16}


def classifier(model_type="bert", seed=0, **changes):
    config = config_of(model_type, num_labels=3, **changes)
    base = randomize(ElasticForSequenceClassification.stock_class(config)(config), seed)
    return ElasticForSequenceClassification.from_base(base, space=space_of(model_type), importance="none")


def lora(model_type="bert", **options):
    return LoraConfig(**{"r": 4, "target_modules": TARGETS[model_type], "task_type": "SEQ_CLS", **options})


def adapted(model_type="bert", **options):
    """An elastic classifier and its PeftModel, whose second factors are not zero."""
    model = classifier(model_type)
    model.view(SMALL)  # made before the adapter: has to be forgotten
    peft_model = get_peft_model(model, lora(model_type, **options))
    return model, randomize(peft_model)


def subnets_of(model, count=8):
    samples = [model.space.sample(random.Random(seed)) for seed in range(count)]
    return [None, SMALL, model.space.smallest, {"layers": [1, 3]}, *samples]


@torch.no_grad()
def logits_of(model, subnet=None, **inputs):
    return model.view(subnet)(**(inputs or batch())).logits


def close(a, b):
    torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


def differ(a, b):
    return (a - b).abs().max() > 100 * TOLERANCE
