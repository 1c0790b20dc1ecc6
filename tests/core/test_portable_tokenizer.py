"""Wherever a tokenizer is written, both majors of transformers find a class that they know."""

import json
import os
import subprocess

import pytest
from tiny import config_of, randomize
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_elastic import ElasticForCausalLM, export_subnet
from hf_elastic.cli.main import main
from hf_elastic.data.tokenizer import train_byte_level_bpe
from hf_elastic.training import ElasticTrainer, ElasticTrainingArguments
from hf_elastic.utils.tokenizer import save_tokenizer

OTHER = "HF_ELASTIC_OTHER_PYTHON"
READ = "import sys; from transformers import AutoTokenizer as A; print(A.from_pretrained(sys.argv[1])('a few words').input_ids)"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of no architecture, which transformers 5 calls TokenizersBackend."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("a few words of text\n" * 50)
    tokenizer = train_byte_level_bpe(str(folder), vocab_size=264)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    return tokenizer


@pytest.fixture(scope="module")
def stock():
    return randomize(AutoModelForCausalLM.from_config(config_of("llama", vocab_size=300)))


def elastic(stock):
    return ElasticForCausalLM.from_base(stock, space={"num_hidden_layers": [2, 4], "intermediate_size": [16, 48]})


def check(folder, tokenizer):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(settings.get("extra_special_tokens"), list)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("a few <extra> words").input_ids == tokenizer("a few <extra> words").input_ids
    assert "<extra>" in again.all_special_tokens


def test_elastic_sizes_and_standard_ones(stock, tokenizer, tmp_path):
    for name, subnet in (("elastic", {"intermediate_size": [16, 48, 16, 48]}), ("standard", {"num_hidden_layers": 2})):
        model = elastic(stock)
        assert model.portability_of(subnet) == name
        export_subnet(model, subnet, tmp_path / name, tokenizer=tokenizer)
        check(tmp_path / name, tokenizer)


def test_converted_and_trained_supernets(stock, tokenizer, tmp_path):
    stock.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    space = ["--space", json.dumps({"num_hidden_layers": [2, 4]}), "--task", "causal-lm", "--importance", "none"]
    assert main(["convert", "--model", str(tmp_path / "stock"), "--output_dir", str(tmp_path / "supernet"), *space]) == 0
    check(tmp_path / "supernet", tokenizer)
    arguments = ElasticTrainingArguments(output_dir=str(tmp_path / "trained"), report_to=[], use_cpu=True)
    ElasticTrainer(elastic(stock), arguments, processing_class=tokenizer).save_model()
    check(tmp_path / "trained", tokenizer)


@pytest.mark.other_lane
def test_the_other_major_reads_it(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = subprocess.run([os.environ[OTHER], "-I", "-c", READ, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout) == tokenizer("a few words").input_ids
