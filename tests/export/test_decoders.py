"""Every causal backbone as one ONNX graph with its cache: the tokens are torch's, in our runner and in the libraries' own."""

import json
import logging

import numpy as np
import onnx
import pytest
import torch
from reading import generate
from tiny import DECODERS, GROUPED, batch, config_of, randomize, space_of
from transformers import AutoModelForCausalLM, GenerationConfig

from hf_elastic import ElasticForCausalLM, export_subnet
from hf_elastic.core.errors import UserError
from hf_elastic.evaluation.candidates import GraphModel
from hf_elastic.export.onnx.generation import compare_decoded, decode_with_torch
from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5
from hf_elastic.runtimes.decoding import Decoded, decode_greedily, pad_left
from hf_elastic.runtimes.onnxruntime import OnnxRunner

NEW = 32
# torch.export takes some ten seconds for each: there the quick tests have one, with grouped heads that differ by layer.
CACHED = tuple(name for name in DECODERS if name != "transformer_xl")  # its memory is no key-value cache, and not in the graph
QUICK = ("llama",) if ON_TRANSFORMERS_5 else CACHED
BACKBONES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CACHED]


def subnet_of(name: str) -> dict:
    """Two layers of different sizes: no config of the stock class says that."""
    subnet = {"num_hidden_layers": 2, "num_attention_heads": [4, 2], "intermediate_size": [16, 33]}
    return {**subnet, "num_key_value_heads": [2, 1]} if name in GROUPED else subnet


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """name -> the elastic model and the folder of its export at a size that is not standard."""
    made = {}

    def export(name: str):
        if name not in made:
            stock = randomize(AutoModelForCausalLM.from_config(config_of(name, num_hidden_layers=2)))
            space = {**space_of(name), "num_hidden_layers": [1, 2]}
            model = ElasticForCausalLM.from_base(stock, space=space)
            folder = tmp_path_factory.mktemp(name) / "out"
            try:
                record = export_subnet(model, subnet_of(name), folder, ["onnx"])["onnx"]
            except UserError as error:
                if "is not supported yet" not in str(error):
                    raise
                pytest.skip(f"Optimum knows no {name}")
            made[name] = model, folder, record
        return made[name]

    return export


def greedy(model, name: str, inputs: dict) -> np.ndarray:
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    output = model.view(subnet_of(name)).generate(**inputs, generation_config=settings, eos_token_id=-1)
    return output[:, inputs["input_ids"].shape[1] :].numpy()


@pytest.mark.parametrize("name", BACKBONES)
def test_tokens_are_those_of_torch(exported, name):
    model, folder, record = exported(name)
    assert record["generated_tokens"] == record["generated_tokens_identical"] == 4 * NEW
    assert record["max_generation_difference"] < 1e-5
    runner = OnnxRunner(folder / "onnx" / "model.onnx", threads=1)
    for rows, length in ((3, 9), (1, 4)):  # padded on the left; and a batch of one, which a tracer might have fixed
        inputs = batch(length, rows, seed=3, left=True)
        tokens = decode_greedily(runner, inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), NEW).tokens
        assert np.array_equal(tokens, greedy(model, name, inputs))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_library_of_this_major_generates_the_same(exported, name):
    """ORTModelForCausalLM (4.57) and ExportedModel (5.x), which knows no loop, on the very same files."""
    model, folder, _ = exported(name)
    inputs = batch(9, 3, seed=3, left=True)
    assert np.array_equal(generate(folder / "onnx", inputs, NEW), greedy(model, name, inputs))


def test_names_and_axes(exported):
    """What other programs rely on: Optimum's names, open batch and lengths, and a first cache of any number of heads."""
    _, folder, _ = exported("llama")
    runner = OnnxRunner(folder / "onnx" / "model.onnx")
    assert set(runner.inputs) == {
        "input_ids", "attention_mask", "position_ids",
        *(f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")),
    }  # fmt: skip
    assert runner.outputs == ["logits", *(f"present.{layer}.{part}" for layer in (0, 1) for part in ("key", "value"))]
    assert runner.shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert runner.shapes["past_key_values.0.key"] == ["batch_size", "num_heads", "past_sequence_length", "head_size"]
    assert [runner.shapes[f"present.{layer}.key"][1] for layer in (0, 1)] == [2, 1]


def test_a_graph_with_a_cache_is_evaluated_like_any(exported):
    model, folder, _ = exported("llama")
    ids = batch(7, 2)["input_ids"]
    expected = model.view(subnet_of("llama"))(ids).logits.detach()
    assert torch.allclose(GraphModel(folder / "onnx", threads=1)(ids).logits, expected, atol=1e-5)


def test_weights_are_in_the_graph_once(exported):
    """Prefill and decoding are one graph; two would hold everything twice."""
    model, folder, _ = exported("llama")
    size = sum(weight.nbytes for weight in map(onnx.numpy_helper.to_array, initializers(folder / "onnx" / "model.onnx")))
    assert size < 1.2 * 4 * model.num_parameters_of(subnet_of("llama"))
    manifest = json.loads((folder / "onnx" / "export.json").read_text())
    assert manifest["components"]["model"]["file"] == "model.onnx"


def initializers(path):
    return onnx.load(path).graph.initializer


def test_decoding_stops_at_the_end_token(exported):
    _, folder, _ = exported("llama")
    runner = OnnxRunner(folder / "onnx" / "model.onnx", threads=1)
    inputs = batch(6, 1, seed=3)
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
    tokens = decode_greedily(runner, ids, mask, NEW).tokens
    end = int(tokens[0, 2])
    stopped = decode_greedily(runner, ids, mask, NEW, eos_token_id=end).tokens
    assert stopped.shape[1] == list(tokens[0]).index(end) + 1
    with pytest.raises(ValueError, match="max_new_tokens must be an integer of at least 1, got 0"):
        decode_greedily(runner, ids, mask, 0)
    with pytest.raises(ValueError, match="returns no cache, only logits"):
        decode_greedily(lambda feed: {"logits": np.zeros((1, 6, 9))}, ids, mask, 1)


def test_padding_moves_to_the_left():
    ids, mask = pad_left(np.array([[5, 6, 0, 0], [7, 8, 9, 4]]), np.array([[1, 1, 0, 0], [1, 1, 1, 1]]), longest=3)
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_a_row_counts_up_to_its_first_difference():
    """A tie that falls the other way is no mistake of the export; what comes after it is another text."""
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, :, 1] = 1.0
    logits[0, 1, 2] = 1.0 - 1e-6
    expected = Decoded(np.array([[1, 1, 1]]), logits)
    other = logits.copy()
    other[0, 2] += 5.0
    record = compare_decoded(expected, Decoded(np.array([[1, 2, 3]]), other))
    assert record["generated_tokens_identical"] == 1
    assert record["max_generation_difference"] == 0.0
    assert record["largest_lost_margin"] == pytest.approx(1e-6, rel=0.1)
    assert compare_decoded(expected, Decoded(np.array([[1, 3, 3]]), other))["largest_lost_margin"] == pytest.approx(1.0)


@pytest.mark.slow
def test_a_segment_of_transformer_xl(exported):
    model, folder, record = exported("transformer_xl")
    assert record["max_relative_difference"] < 1e-5
    runner = OnnxRunner(folder / "onnx" / "model.onnx", threads=1)
    assert list(runner.outputs) == ["logits"]
    for length, rows in ((9, 3), (1, 1)):
        inputs = batch(length=length, rows=rows)
        with torch.no_grad():
            expected = model.view(subnet_of("transformer_xl"))(**inputs).logits
        assert np.abs(runner(inputs)["logits"] - expected.numpy()).max() < 1e-5


def test_torch_goes_on_after_the_end_of_text_without_a_warning(caplog, monkeypatch):
    model = randomize(AutoModelForCausalLM.from_config(config_of("llama", num_hidden_layers=1)))
    ids = batch()["input_ids"].numpy()
    first = decode_with_torch(model, ids, np.ones_like(ids), 1).tokens
    model.generation_config.eos_token_id = first[:, 0].tolist()  # every row is at its end at once
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert decode_with_torch(model, ids, np.ones_like(ids), 6).tokens.shape == (len(ids), 6)
    assert "eos_token_id" not in caplog.text
    assert model.generation_config.eos_token_id == first[:, 0].tolist()
