"""Gradients of embeddings that are added in place: rows only, and the same training."""

import pytest
import torch
from test_trainer import SPACE, arguments, assert_same, rows, train, weights
from tiny import config_of, randomize

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification
from hf_elastic.training import gradients as embeddings
from hf_elastic.training import trainer as trainer_module


def trained(kind, tmp_path, monkeypatch, in_place):
    """Weights after a few steps of plain descent, and how often an embedding was told to give rows only."""
    told = []
    original = embeddings.add_rows_in_place

    def watched(skeleton):
        if in_place:
            original(skeleton)
        told.extend(embedding.sparse for embedding, _ in skeleton.whole_embeddings)

    monkeypatch.setattr(trainer_module, "add_rows_in_place", watched)
    torch.manual_seed(0)
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4, "gradient_accumulation_steps": 2}
    if kind == "gpt2":
        config = config_of("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
        base = randomize(ElasticForCausalLM.stock_class(config)(config))
        dataset = rows().remove_columns("labels")
        dataset = dataset.add_column("labels", dataset["input_ids"][:])
        model = ElasticForCausalLM.from_base(base, space=SPACE)
    else:
        dataset = None
        space = {**SPACE, "hidden_size": [32, 64]} if kind == "hidden" else SPACE
        config = config_of("bert", num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        base = randomize(ElasticForSequenceClassification.stock_class(config)(config))
        if kind == "hidden":
            space = {**SPACE, "hidden_size": [config.hidden_size // 2, config.hidden_size], "num_attention_heads": [2]}
        model = ElasticForSequenceClassification.from_base(base, space=space)
    train(model, arguments(tmp_path, **options), dataset)
    assert all(p.grad is None or p.grad.layout == torch.strided for p in model.parameters())
    return weights(model), told


@pytest.mark.parametrize("kind", ["bert", "gpt2", "hidden"])
def test_rows_added_in_place_change_nothing(kind, tmp_path, monkeypatch):
    """Tied embeddings (GPT-2) and cut ones too."""
    plain, _ = trained(kind, tmp_path, monkeypatch, in_place=False)
    in_place, told = trained(kind, tmp_path, monkeypatch, in_place=True)
    assert any(told)
    assert_same(in_place, plain, 1e-6)
