"""ELM as a supernet: causal sizes of both blocks, heads that are partitioned anew, training, graphs, the command line."""

import itertools
import json

import numpy as np
import onnx
import pytest
import torch
from elm_tiny import BLOCKS, TINY, UNEQUAL, causal_lm, config_of, masked_lm, other, tokens
from tiny import batch, save_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticTrainer, ElasticTrainingArguments
from hf_elastic.cli.convert import main as convert
from hf_elastic.core.errors import UserError
from hf_elastic.core.shapes import SpecError
from hf_elastic.export import export_subnet
from hf_elastic.models.elm import ElmForCausalLM
from hf_elastic.runtimes.onnxruntime import OnnxRunner

SPACE = {
    "num_hidden_layers": [2, 3],
    "hidden_size": [16, 32],
    "num_attention_heads": [1, 2, 4],
    "intermediate_size": [7, 48],
    "block_type": BLOCKS,
    "per_layer": ["block_type", "intermediate_size", "num_attention_heads"],
}
MIXED = {
    "num_hidden_layers": 2, "block_type": BLOCKS[::-1], "intermediate_size": [7, 48], "num_attention_heads": [2, 4]
}  # fmt: skip
GENERATION = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def causal_supernet(**options):
    return ElasticForCausalLM.from_base(causal_lm(block_type=[BLOCKS]), SPACE, importance="none", **options)


def masked_supernet(**options):
    return ElasticForMaskedLM.from_base(masked_lm(block_type=[BLOCKS]), SPACE, importance="none", **options)


def causal_sizes(model):
    return [MIXED, model.space.smallest, *({"block_type": name} for name in BLOCKS), {"layers": [0, 2], "hidden_size": 16}]


@torch.no_grad()
def test_no_position_of_any_size_sees_its_future():
    model = causal_supernet()
    ids = tokens()
    for size in causal_sizes(model):
        view = model.view(size)
        before = view(ids).logits
        for position in range(1, ids.shape[1]):
            changed = torch.cat([ids[:, :position], other(ids)[:, position:]], 1)
            after = view(changed).logits
            assert torch.equal(after[:, :position], before[:, :position])
            assert (after[:, position] - before[:, position]).abs().max() > 1e-4


@torch.no_grad()
def test_cached_generation_of_sizes():
    model = causal_supernet()
    for size in causal_sizes(model):
        inputs = batch(left=True)
        cached = model.view(size).generate(**inputs, **GENERATION, use_cache=True)
        assert torch.equal(cached, model.view(size).generate(**inputs, **GENERATION, use_cache=False))
        assert torch.equal(cached, model.extract(size).generate(**inputs, **GENERATION))
        model.select(size)
        assert torch.equal(cached, model.generate(**inputs, **GENERATION))
        model.select(None)


@torch.no_grad()
def test_a_cache_is_of_its_size():
    model = causal_supernet()
    model.select(MIXED)
    ids = tokens()
    cache = model(ids[:, :8], use_cache=True).past_key_values
    found = model(ids[:, 8:], past_key_values=cache).logits
    torch.testing.assert_close(found, model(ids).logits[:, 8:], atol=1e-5, rtol=0)
    model.select({"num_hidden_layers": 2, "num_attention_heads": 2})
    with pytest.raises(UserError, match=r"past_key_values has the heads \[2, 4\] in its layers, the selected size \[2, 2\]"):
        model(ids[:, 8:], past_key_values=cache)


@torch.no_grad()
def test_fewer_heads_are_wider_ones():
    model = masked_supernet()
    for name in BLOCKS:
        counts, logits = set(), []
        for heads in (1, 2, 4):
            size = {"block_type": name, "num_attention_heads": heads}
            counts.add(model.num_parameters_of(size))
            logits.append(model.view(size)(**batch()).logits)
            assert model.extract(size).config.num_attention_heads == heads
        assert len(counts) == 1
        assert all((one - two).abs().max() > 1e-3 for one, two in itertools.pairwise(logits))


def test_a_single_path_trains_both_blocks(tmp_path):
    model = masked_supernet().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in tokens(rows=16).tolist()]
    arguments = ElasticTrainingArguments(
        tmp_path, sampling="single_path", max_steps=12, per_device_train_batch_size=4, report_to=[], save_strategy="no",
        learning_rate=1e-2, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    result = ElasticTrainer(model=model, args=arguments, train_dataset=rows).train()
    assert np.isfinite(result.training_loss)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_size_is_trained_on_as_the_stock_class(tmp_path):
    extracted = causal_supernet().extract(MIXED)
    assert type(extracted) is ElmForCausalLM
    extracted.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    again(tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_layers_of_other_sizes_are_one_size():
    with pytest.raises(SpecError, match=r"config\.num_attention_heads is .*: a supernet needs one value for all its layers"):
        ElasticForMaskedLM.from_base(masked_lm(num_attention_heads=[2, 4, 1]))
    with pytest.raises(SpecError, match="which does not fit"):
        ElasticForMaskedLM.from_base(masked_lm(intermediate_size=[7, 48, 20]))


@pytest.mark.parametrize("direction", ["masked", "causal"])
def test_a_graph_has_the_chosen_blocks_alone(direction, tmp_path):
    model = masked_supernet() if direction == "masked" else causal_supernet()
    export_subnet(model, MIXED, tmp_path / "out", ["onnx"])
    record = json.loads((tmp_path / "out" / "onnx" / "parity.json").read_text())
    assert record["passed"] and record["max_relative_difference"] < 1e-5
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx")
    extracted = model.extract(MIXED)
    names = {value.name for value in graph.graph.input}
    if direction == "causal":
        assert record["generated_tokens"] == record["generated_tokens_identical"] > 0
        # Of its two layers, and of the embeddings.
        assert {name for name in names if name.startswith("past")} == {
            f"past_key_values.{layer}.{part}" for layer in range(3) for part in ("key", "value")
        }
        return
    inputs = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    found = OnnxRunner(tmp_path / "out" / "onnx" / "model.onnx")({name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(found["logits"], extracted(**inputs).logits.detach().numpy(), atol=1e-5)


def words(options: dict) -> list[str]:
    pairs = [(f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in options.items()]
    return [word for pair in pairs for word in pair]


def test_from_a_config_by_the_command_line(tmp_path, capsys):
    tokenizer = tmp_path / "tokenizer"
    save_tokenizer(tokenizer)
    config = {key: value for key, value in TINY.items() if key != "vocab_size"}
    space = {key: value for key, value in SPACE.items() if key != "hidden_size"}
    options = {
        "task": "masked-lm", "model_config": {**config, "model_type": "elm", "block_type": [BLOCKS]},
        "space": space, "subnets": {"mixed": MIXED}, "tokenizer": str(tokenizer), "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    convert(words(options))
    printed = capsys.readouterr().out
    assert "'block_type': ['mobilebert', 'bert']" in printed and f"sizes in {tmp_path / 'out'}" in printed
    model = ElasticForMaskedLM.from_pretrained(tmp_path / "out", subnet="mixed")
    assert model.space["block_type"] == tuple(BLOCKS) and model.subnet("mixed")["block_type"] == ("mobilebert", "bert")
    unequal = {**options, "model_config": {**config, "model_type": "elm", **UNEQUAL}, "output_dir": str(tmp_path / "one")}
    del unequal["space"], unequal["subnets"]
    convert(words(unequal))
    model = ElasticForMaskedLM.from_pretrained(tmp_path / "one")
    assert model.subnet(None).to_dict() == {"num_hidden_layers": 3, "hidden_size": 32, **UNEQUAL}
    stock = AutoModelForMaskedLM.from_config(config_of(vocab_size=model.config.vocab_size, **UNEQUAL))
    assert model.num_parameters() == stock.num_parameters()
