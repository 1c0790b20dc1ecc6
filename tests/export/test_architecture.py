"""Sizes as configs alone."""

import json

import pytest
import torch
from tiny import batch, config_of
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from hf_elastic import ElasticConfig, ElasticForCausalLM
from hf_elastic.cli.main import main
from hf_elastic.core.partition import partition_heads
from hf_elastic.core.spec import SPECS
from hf_elastic.export.architecture import architecture_config, save_architecture
from hf_elastic.models.transfo_xl import TransformerXLForCausalLM

UNIFORM = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 30}
UNEQUAL = {"layers": [0, 1, 3], "hidden_size": 24, "num_attention_heads": [4, 2, 1], "intermediate_size": [7, 40, 9]}


def model_of(model_type, *, partition=True):
    spec = partition_heads(SPECS[model_type]).to_dict() if partition else None
    return ElasticForCausalLM(ElasticConfig(base_config=config_of(model_type), spec=spec))


@pytest.mark.parametrize(
    ("model_type", "subnet", "kind"),
    [
        ("gpt2", UNIFORM, GPT2LMHeadModel),
        ("gpt2", UNEQUAL, ElasticForCausalLM),
        ("transformer_xl", UNIFORM, TransformerXLForCausalLM),
        ("transformer_xl", UNEQUAL, TransformerXLForCausalLM),
    ],
)
def test_the_auto_class_builds_it(model_type, subnet, kind, tmp_path):
    model = model_of(model_type)
    save_architecture(model, subnet, tmp_path / "found")
    built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "found")).eval()
    assert isinstance(built, kind)
    stock = built.base if kind is ElasticForCausalLM else built
    view = model.view(subnet)
    assert {n: p.shape for n, p in stock.named_parameters()} == {n: p.shape for n, p in view.named_parameters()}
    built.load_state_dict(view.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(built(**batch()).logits, view(**batch()).logits, atol=1e-5, rtol=0)


def test_the_base_is_no_larger_than_the_largest_layer():
    config = architecture_config(model_of("gpt2"), UNEQUAL)
    assert (config.base_config.n_embd, config.base_config.n_layer, config.base_config.n_inner) == (24, 3, 40)
    assert config.frozen["num_attention_heads"] == [4, 2, 1]
    dropped = architecture_config(model_of("gpt2", partition=False), {"num_attention_heads": [4, 2, 4, 4]})
    assert dropped.base_config.n_embd == 32, "heads of a fixed size need the width that they were dropped from"
    again = ElasticForCausalLM(config)
    assert architecture_config(again).to_dict() == again.standalone()[1].to_dict()


def test_convert_makes_a_checkpoint_with_new_weights(tmp_path, capsys):
    save_architecture(model_of("gpt2"), UNEQUAL, tmp_path / "found")
    options = ["--task", "causal-lm", "--tokenizer", "none", "--importance", "none", "--output_dir", str(tmp_path / "new")]
    options += ["--model_config", str(tmp_path / "found" / "config.json")]
    assert main(["convert", *options]) == 0, capsys.readouterr().err
    built = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert built.num_parameters() == model_of("gpt2").num_parameters_of(UNEQUAL)
    assert main(["convert", *options, "--space", json.dumps({"hidden_size": [24]}), "--overwrite", "true"]) == 2
    assert "an elastic config says its sizes itself" in capsys.readouterr().err


@pytest.mark.parametrize("heads", [{"n_head": [4, 2], "d_head": [8, 16]}, {"n_head": [4, 2], "d_head": 8}, {"n_head": 4}])
def test_a_transformer_xl_of_unequal_layers_is_trained(heads, tmp_path, capsys):
    """By the two commands of recipes/lts/README.md."""
    config = config_of("transformer_xl", n_layer=2, d_inner=[20, 48], vocab_size=300, **heads)
    config.save_pretrained(tmp_path / "found")
    data = tmp_path / "text"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.txt").write_text("The same sentence, said once more.\n" * 40)
    options = ["--task", "causal-lm", "--importance", "none", "--tokenizer_dataset", "text", "--data_dir", str(tmp_path)]
    options += ["--model_config", str(tmp_path / "found" / "config.json"), "--output_dir", str(tmp_path / "new")]
    assert main(["convert", *options]) == 0, capsys.readouterr().err
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    stock = TransformerXLForCausalLM(config)
    assert {n: p.shape for n, p in new.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}
    stock.load_state_dict(new.state_dict())
    inputs = {"input_ids": torch.arange(24).view(2, 12)}
    with torch.no_grad():
        torch.testing.assert_close(new(**inputs).logits, stock.eval()(**inputs).logits)
    recipe = "recipes/lts/transfo_xl/train.yaml"
    options = ["--model", str(tmp_path / "new"), "--dataset", "text", "--data_dir", str(tmp_path), "--max_length", "16"]
    options += ["--max_steps", "2", "--output_dir", str(tmp_path / "trained"), "--use_cpu", "true"]
    assert main(["train", recipe, *options]) == 0, capsys.readouterr().err
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert any(not torch.equal(p, q) for p, q in zip(trained.parameters(), new.parameters(), strict=True))


def test_unequal_layers_that_cannot_be_converted(tmp_path, capsys):
    folders = ["--task", "causal-lm", "--tokenizer", "none", "--importance", "none", "--output_dir", str(tmp_path / "new")]
    config = config_of("transformer_xl", n_head=[4, 2, 2, 2], d_head=[8, 16, 8, 16])
    config.save_pretrained(tmp_path)
    assert main(["convert", *folders, "--model_config", str(tmp_path / "config.json")]) == 2
    assert "d_head: [8, 16, 8, 16] differ from layer to layer" in capsys.readouterr().err
    config = config_of("transformer_xl", d_inner=[8, 16, 8, 16])
    options = ["--model_config", json.dumps(config.to_dict()), "--space", json.dumps({"hidden_size": [24]})]
    assert main(["convert", *folders, *options]) == 2
    assert "its layers differ, so it is one size" in capsys.readouterr().err
