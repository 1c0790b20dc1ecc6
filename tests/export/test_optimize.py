"""Optimization levels and opsets of the ONNX format."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from tiny import batch, config_of, randomize, space_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, export_subnet
from hf_elastic.cli.main import main
from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5
from hf_elastic.runtimes.onnxruntime import OnnxRunner


@pytest.fixture(scope="module")
def bert():
    stock = randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_hidden_layers=2)))
    space = {**space_of("bert"), "num_hidden_layers": [1, 2]}
    return ElasticForSequenceClassification.from_base(stock, space=space)


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("level", ["O1", "O2", "O3", "O4"])
def test_levels(bert, tmp_path, level):
    """From O2 on attention is one operator a layer; the certificate holds at each, and O3 and O4 change values."""
    attention = bert.base.config._attn_implementation  # for the fusions the graph is traced with another
    record = export_subnet(bert, {"intermediate_size": 16}, tmp_path / "out", ["onnx"], optimize=level)["onnx"]
    found = operators(tmp_path / "out" / "onnx" / "model.onnx")
    assert found["Attention"] == (0 if level == "O1" else 2)
    assert found["Softmax"] == (2 if level == "O1" else 0)
    is_approximate = level in ("O3", "O4")
    assert found["FastGelu"] == (2 if is_approximate else 0)
    assert (record["max_relative_difference"] < 1e-5) != is_approximate
    assert bert.base.config._attn_implementation == attention == bert.view(None).config._attn_implementation
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2} - {onnx.TensorProto.INT64}
    assert weights == {onnx.TensorProto.FLOAT16 if level == "O4" else onnx.TensorProto.FLOAT}
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    inputs = batch(11, 5)
    logits = OnnxRunner(tmp_path / "out" / "onnx" / "model.onnx")(inputs)["logits"]
    expected = bert.view({"intermediate_size": 16})(**inputs).logits.detach()
    assert torch.allclose(torch.as_tensor(logits), expected, atol=0.02 if is_approximate else 1e-5)


@pytest.mark.slow
def test_sizes_of_their_own_are_fused_too(bert, tmp_path):
    """Heads that do not make up the hidden size, another number in each layer: what no stock config describes."""
    subnet = {"num_attention_heads": [3, 1], "intermediate_size": [7, 33]}
    record = export_subnet(bert, subnet, tmp_path / "out", ["onnx"], optimize="O2")["onnx"]
    assert record["max_relative_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O2", "O4"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoders_are_optimized_with_their_cache(tmp_path, monkeypatch, name, level):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stock = randomize(AutoModelForCausalLM.from_config(config_of(name, num_hidden_layers=2)))
    model = ElasticForCausalLM.from_base(stock, space={"num_hidden_layers": [1, 2]})
    if name == "gpt2" and ON_TRANSFORMERS_5:
        with pytest.raises(ValueError, match=f"optimize: {level} breaks the graph of gpt2 here; leave it out or take O1"):
            export_subnet(model, None, "out", ["onnx"], optimize=level)
        assert list(Path.cwd().iterdir()) == []
        return
    record = export_subnet(model, None, "out", ["onnx"], optimize=level)["onnx"]
    assert [path.name for path in Path.cwd().iterdir()] == ["out"]
    assert record["generated_tokens_identical"] == record["generated_tokens"] > 0


@pytest.mark.slow
def test_an_opset_is_written_as_asked(bert, tmp_path):
    export_subnet(bert, None, tmp_path / "out", ["onnx"], opset=20)
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx")
    assert {one.domain: one.version for one in graph.opset_import}[""] == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"opset": 9}, "opset: 9 is too old for BertForSequenceClassification: .*the default is 18", marks=pytest.mark.slow
        ),
        ({"opset": "new"}, "opset must be an integer from 7 to \\d+, got 'new'"),
        ({"opset": 3}, "opset must be an integer from 7 to \\d+, got 3; the default is 18"),
        ({"opset": 99}, "opset must be an integer from 7 to 2\\d, got 99"),
        ({"optimize": "O9"}, "optimize: 'O9' is unknown; known: O1, O2, O3, O4"),
    ],
)
def test_bad_options(bert, tmp_path, capfd, options, message):
    with pytest.raises(ValueError, match=message):
        export_subnet(bert, None, tmp_path / "out", ["onnx"], **options)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""  # on 4.57 torch has a graph of 40 kB to say


@pytest.mark.skipif(ON_TRANSFORMERS_5, reason="ORTOptimizer keeps a list of architectures")
def test_optimum_names_what_it_cannot_optimize(tmp_path):
    stock = randomize(AutoModelForCausalLM.from_config(config_of("qwen2")))
    model = ElasticForCausalLM.from_base(stock)
    with pytest.raises(ValueError, match=r"ORTOptimizer does not know qwen2; it knows: .*llama"):
        export_subnet(model, None, tmp_path / "out", ["onnx"], optimize="O1")
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_the_options(bert, tmp_path, capsys):
    bert.save_pretrained(tmp_path / "in")
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path / "in")
    arguments = ["export", "--model", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--formats", "onnx"]
    arguments[1:1] = ["--subnet", '{"intermediate_size": 16}']
    assert main([*arguments, "--optimize", "O7"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("optimize: 'O7' is unknown; known: O1, O2, O3, O4")
    assert main([*arguments, "--optimize", "O2"]) == 0
    assert operators(tmp_path / "out" / "onnx" / "model.onnx")["Attention"] == 2
    assert main([*arguments[:-1], "safetensors", "--overwrite", "--opset", "20"]) == 2
    message = "opset: an option of onnx, onnx-int8, onnx-int8-static, onnx-int8-weights; formats: safetensors"
    assert message in capsys.readouterr().err
