"""A tiny BERT with a tokenizer, stock and elastic, and a task in files."""

import json

import pytest
import torch
from tiny import WORDS, config_of, save_tokenizer
from transformers import AutoModelForSequenceClassification

from hf_elastic.cli.main import main


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """A tiny BERT with a real tokenizer, as on the Hub."""
    folder = tmp_path_factory.mktemp("stock")
    save_tokenizer(folder)
    torch.manual_seed(0)  # some initial weights learn the task below several times slower
    AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A task that a tiny model can learn: which of two words comes first."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("dev", 32)):
        rows = [f"{i % 2}\t{WORDS[i % 2]} {WORDS[2 + i % 50]} {WORDS[3 + i % 40]}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["label\tsentence", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def elastic(stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic") / "model"
    space = {"num_hidden_layers": [1, 2, 4], "intermediate_size": [16, 48]}
    small = {"small": {"num_hidden_layers": 1, "intermediate_size": 16}}
    options = ["--space", json.dumps(space), "--subnets", json.dumps(small), "--num_labels", "2"]
    assert main(["convert", "--model", str(stock), "--output_dir", str(folder), *options]) == 0
    return folder
