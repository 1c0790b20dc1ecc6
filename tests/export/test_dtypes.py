"""Models in half precision leave as they are, and in what was asked for."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tiny import DECODERS, FAMILIES, config_of, randomize, space_of
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, ElasticModel
from hf_elastic.core.errors import UserError
from hf_elastic.export import export_subnet
from hf_elastic.export.outputs import predict
from hf_elastic.export.parity import ParityError

UNEVEN = {"num_hidden_layers": 2, "intermediate_size": [48, 16], "num_attention_heads": [4, 2]}


def elastic(name: str, dtype: torch.dtype):
    kind, head = (ElasticForCausalLM, AutoModelForCausalLM) if name in DECODERS else (ElasticModel, AutoModel)
    torch.manual_seed(0)
    return kind.from_base(randomize(head.from_config(config_of(name))), space=space_of(name)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_written_bit_by_bit(name, dtype, tmp_path):
    model = elastic(name, dtype)
    for subnet in ("largest", {"num_hidden_layers": 2, "intermediate_size": 16}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        record = export_subnet(model, subnet, folder)["safetensors"]
        assert record["dtype"] == str(dtype).removeprefix("torch.")
        assert all(stored.dtype == dtype for stored in load_file(folder / "model.safetensors").values())
        again = (AutoModelForCausalLM if name in DECODERS else AutoModel).from_pretrained(folder, dtype="auto")
        weights = dict(model.view(subnet).named_parameters())
        loaded = dict(again.named_parameters())
        assert weights.keys() == loaded.keys()
        assert all(loaded[key].dtype == dtype and torch.equal(loaded[key], weight) for key, weight in weights.items())


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 2}, UNEVEN], ids=["standard", "elastic"])
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "cast"])
def test_an_extracted_size_computes_what_its_view_does(loaded, sizes, tmp_path):
    """`model.to(dtype)` rounds the frequencies of rotary positions, and loading in half precision does not."""
    stock = randomize(AutoModelForCausalLM.from_config(config_of("llama", max_position_embeddings=512)))
    stock.to(torch.bfloat16).save_pretrained(tmp_path)
    source = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto") if loaded else stock
    model = ElasticForCausalLM.from_base(source, space=space_of("llama"))
    view, extracted = model.view(sizes), model.extract(sizes)
    assert {name: one.dtype for name, one in view.named_buffers()} == {name: one.dtype for name, one in extracted.named_buffers()}
    ids = {"input_ids": torch.arange(400)[None] % 99}
    assert np.array_equal(predict(view, ids), predict(extracted, ids))


def test_a_size_of_uneven_layers_in_half_precision(tmp_path):
    model = elastic("gpt2", torch.bfloat16)
    export_subnet(model, UNEVEN, tmp_path / "out")
    again = ElasticForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype is torch.bfloat16
    ids = {"input_ids": torch.arange(9)[None]}
    assert np.array_equal(predict(again, ids), predict(model.extract(UNEVEN), ids))


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8), ("float32", 24)])
def test_another_dtype_is_rounded_to_and_judged_by_its_bits(dtype, bits, tmp_path):
    model = elastic("bert", torch.float32)
    record = export_subnet(model, "smallest", tmp_path / "out", dtype=dtype)["safetensors"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for key, weight in model.view("smallest").state_dict().items():
        assert stored[key].dtype is getattr(torch, dtype)
        assert (stored[key].double() - weight.double()).abs().max() <= weight.abs().max() * 2.0**-bits
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert record["weights_identical"] and record["dtype"] == dtype
    assert (record["tolerance"]["max_relative_difference"] == 1e-4) == (dtype == "float32")


def test_half_precision_as_float32_loses_nothing(tmp_path):
    model = elastic("llama", torch.bfloat16)
    export_subnet(model, None, tmp_path / "out", dtype="float32")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(stored[key], weight.float()) for key, weight in model.view().state_dict().items() if key in stored)


def test_a_weight_that_the_dtype_cannot_hold_is_an_error(tmp_path):
    model = elastic("bert", torch.float32)
    with torch.no_grad():
        model.base.embeddings.word_embeddings.weight[5] = 1e6
    with pytest.raises(ParityError, match=r"word_embeddings.weight has values that torch.float16 cannot hold"):
        export_subnet(model, None, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_mixed_precision_is_refused_unless_one_is_named(tmp_path):
    model = elastic("bert", torch.bfloat16)
    model.base.embeddings.word_embeddings.float()
    with pytest.raises(ParityError, match=r"word_embeddings.weight is torch.float32 in the model and .* torch.bfloat16|bfloat16"):
        export_subnet(model, None, tmp_path / "out")
    record = export_subnet(model, None, tmp_path / "out", dtype="bfloat16")["safetensors"]
    assert record["dtype"] == "bfloat16"


def test_an_unknown_dtype_and_one_that_no_format_takes(tmp_path):
    model = elastic("bert", torch.float32)
    with pytest.raises(UserError, match="dtype: 'int4' is unknown; known: float32, float16, bfloat16"):
        export_subnet(model, None, tmp_path / "out", dtype="int4")
    with pytest.raises(UserError, match="dtype: an option of safetensors; formats: onnx"):
        export_subnet(model, None, tmp_path / "out", ["onnx"], dtype="float16")


@pytest.mark.parametrize("head", [pytest.param("decoder", marks=pytest.mark.slow), "classifier"])
def test_graphs_of_half_precision_are_exact_in_float32(head, tmp_path):
    if head == "decoder":
        model = elastic("llama", torch.bfloat16)
    else:
        stock = randomize(AutoModelForSequenceClassification.from_config(config_of("bert")))
        model = ElasticForSequenceClassification.from_base(stock, space=space_of("bert")).to(torch.float16)
    subnet = {"num_hidden_layers": 2, "intermediate_size": 16}
    records = export_subnet(model, subnet, tmp_path / "out", ["safetensors", "onnx"])
    assert records["onnx"]["max_relative_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    assert "tensor(float)" in {one.type for one in session.get_outputs()}
    assert model.dtype is not torch.float32 and model.view(subnet).dtype is model.dtype  # the user's is as it was
    if head == "decoder":
        assert records["onnx"]["generated_tokens_identical"] == records["onnx"]["generated_tokens"] > 0
