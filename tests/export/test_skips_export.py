"""Graphs of sizes that skip attention or the feed-forward: nothing of what is skipped is in them."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from tiny import DECODERS, ENCODERS, batch, config_of, randomize
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification
from hf_elastic.core.errors import UserError
from hf_elastic.export import export_subnet
from hf_elastic.runtimes.decoding import decode_greedily
from hf_elastic.runtimes.onnxruntime import OnnxRunner

SPACE = {"num_hidden_layers": [4], "attention": ["full", "skip"], "mlp": ["full", "skip"], "per_layer": ["attention", "mlp"]}
SIZE = {"attention": ["skip", "full", "full", "skip"], "mlp": ["full", "skip", "full", "skip"]}
BACKBONES = ["bert", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "gpt_neox", "gemma2"))]

# Products of attention, those of tokens by tokens among them, and of the feed-forward.
PRODUCTS = {"bert": 6 + 2, "llama": 6 + 3, "gpt2": 4 + 2, "gpt_neox": 4 + 2, "gemma2": 6 + 3}


def elastic(name):
    is_encoder = name in ENCODERS
    auto = AutoModelForSequenceClassification if is_encoder else AutoModelForCausalLM
    kind = ElasticForSequenceClassification if is_encoder else ElasticForCausalLM
    return kind.from_base(randomize(auto.from_config(config_of(name))), space=SPACE, importance="none")


def counted(path):
    graph = onnx.load(path).graph
    operators = Counter(node.op_type for node in graph.node)
    weights = sum(int(np.prod(one.dims)) for one in graph.initializer if len(one.dims))
    names = [node.name for node in graph.node] + [one.name for one in graph.initializer]
    return graph, operators, weights, names


@pytest.mark.parametrize("name", BACKBONES)
def test_no_trace_of_what_is_skipped(name, tmp_path):
    model = elastic(name)
    records = {
        size: export_subnet(model, subnet, tmp_path / size, ["onnx"]) for size, subnet in {"full": None, "thin": SIZE}.items()
    }
    assert all(record["onnx"]["passed"] for record in records.values())
    graph, operators, weights, names = counted(tmp_path / "thin" / "onnx" / "model.onnx")
    _, full_operators, full_weights, _ = counted(tmp_path / "full" / "onnx" / "model.onnx")
    # Of four layers two attend, and two have a feed-forward.
    assert (operators["Softmax"], full_operators["Softmax"]) == (2, 4)
    products = [found["MatMul"] + found["Gemm"] for found in (full_operators, operators)]
    assert products[0] - products[1] == 2 * PRODUCTS[name]
    assert full_operators["Add"] - operators["Add"] >= 4, "of the residual stream"
    assert weights < full_weights * 0.75
    gone = {"bert": ("layer.0.attention.self", "layer.1.intermediate", "layer.1.output.dense", "layer.3.attention.self"),
            "llama": ("layers.0.self_attn", "layers.0.input_layernorm", "layers.1.mlp", "layers.3")}  # fmt: skip
    for path in gone.get(name, ()):
        found = [one for one in names if path.replace(".", "/") in one or path in one]
        assert not found, found
    if name in DECODERS:
        inputs = [value.name for value in graph.input if value.name.startswith("past_key_values")]
        assert inputs == [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
        left = batch(left=True)
        expected = model.view(SIZE).generate(**left, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        run = OnnxRunner(tmp_path / "thin" / "onnx" / "model.onnx")
        tokens = decode_greedily(run, left["input_ids"].numpy(), left["attention_mask"].numpy(), 6).tokens
        assert np.array_equal(tokens, expected[:, left["input_ids"].shape[1] :].numpy())


def test_checkpoint_says_what_is_skipped(tmp_path):
    model = elastic("bert")
    export_subnet(model, SIZE, tmp_path / "thin", ["safetensors"])
    config = json.loads((tmp_path / "thin" / "config.json").read_text())
    assert config["model_type"] == "elastic"
    assert config["own"]["per_layer_config"] == {
        "0": {"skip": ["attention"]}, "1": {"skip": ["mlp"]}, "3": {"skip": ["attention", "mlp"]}
    }  # fmt: skip
    again = ElasticForSequenceClassification.from_pretrained(tmp_path / "thin")
    with torch.no_grad():
        assert torch.equal(again(**batch()).logits, model.view(SIZE)(**batch()).logits)


def test_a_standard_export_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"not standard, as is asked for: its layer 0 skips attention, and Bert.*the nearest"
    ) as error:
        export_subnet(elastic("bert"), SIZE, tmp_path / "thin", ["safetensors"], standard_only=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "thin").exists()
