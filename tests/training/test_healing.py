"""Sizes that skip attention or the feed-forward are trained like any: the full one is their teacher, and they come nearer."""

import pytest
import torch
from tiny import VOCAB, config_of, randomize
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM, ElasticTrainer, ElasticTrainingArguments

SPACE = {"num_hidden_layers": [4], "attention": ["full", "skip"], "mlp": ["full", "skip"], "per_layer": ["attention", "mlp"]}
SIZE = {"attention": ["full", "skip", "full", "skip"], "mlp": ["full", "full", "skip", "full"]}


@pytest.fixture
def rows():
    ids = torch.randint(5, VOCAB, (64, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids]


@torch.no_grad()
def divergence(model, size, rows):
    ids = torch.tensor([row["input_ids"] for row in rows])
    whole, found = (log_softmax(model.view(one)(ids).logits, -1) for one in (None, size))
    return kl_div(found, whole, reduction="batchmean", log_target=True).item()


@pytest.mark.parametrize("sampling", ["sandwich", "single_path"])
def test_a_size_is_healed(sampling, rows, tmp_path):
    base = randomize(AutoModelForCausalLM.from_config(config_of("llama")))
    model = ElasticForCausalLM.from_base(base, space=SPACE, subnets={"thin": SIZE}, importance="none")
    before = divergence(model, "thin", rows)
    arguments = ElasticTrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=16, learning_rate=3e-3, sampling=sampling,
        report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True, seed=0,
    )  # fmt: skip
    ElasticTrainer(model=model, args=arguments, train_dataset=rows).train()
    assert divergence(model, "thin", rows) < before
    assert model.num_parameters_of("thin") == model.extract("thin").num_parameters()
