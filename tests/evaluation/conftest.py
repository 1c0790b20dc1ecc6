"""Made-up data, an elastic model with random weights, and one of its sizes exported."""

import pytest
import torch
from made_up import tokenizer, write_all
from tiny import config_of, randomize
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM
from hf_elastic.cli.main import main

SPACE = {"num_hidden_layers": [1, 2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def elastic(tmp_path_factory):
    """Random weights, large enough that sizes disagree."""
    folder = tmp_path_factory.mktemp("elastic")
    torch.manual_seed(0)
    base = randomize(AutoModelForCausalLM.from_config(config_of("gpt2", n_positions=256)))
    model = ElasticForCausalLM.from_base(base, space=SPACE, subnets={"small": SMALL}, importance="none")
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(elastic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "small"
    options = ["--subnet", "small", "--output_dir", str(folder), "--formats", "safetensors", "onnx"]
    assert main(["export", "--model", str(elastic), *options]) == 0
    return folder
