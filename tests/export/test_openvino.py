"""OpenVINO IR: parity, compressed and quantized weights, the runner, bad input."""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import batch, config_of, randomize
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM
from hf_elastic.export import ExportConfig, export_subnet, format
from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5, PACKAGES

openvino = pytest.importorskip("openvino", reason="pip install 'hf-elastic[openvino]'")
pytest.importorskip("nncf", reason="pip install 'hf-elastic[openvino]'")

from hf_elastic.export.openvino.quantize import compress_openvino, quantize_openvino  # noqa: E402
from hf_elastic.export.outputs import predict  # noqa: E402
from hf_elastic.graphs.onnx import export_onnx  # noqa: E402
from hf_elastic.graphs.openvino import EXTRA, export_openvino  # noqa: E402
from hf_elastic.runtimes.openvino import OpenVINORunner  # noqa: E402

LAYERS = 2
SUBNET = {"num_hidden_layers": 2, "intermediate_size": 33, "num_attention_heads": 3}
FILES = ["openvino_model.bin", "openvino_model.xml"]


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    return export_openvino(model.view(None), batch(rows=2), tmp_path_factory.mktemp("ir") / "model.xml")


def error_of(model, path) -> float:
    """Mean error of the logits, as a share of their mean size."""
    inputs = batch(length=12, rows=9)
    expected = predict(model.view(None), inputs)
    return float(np.abs(OpenVINORunner(path, threads=1)(inputs)["logits"] - expected).mean() / np.abs(expected).mean())


def weight_types(path) -> Counter:
    constants = [one for one in openvino.Core().read_model(str(path)).get_ops() if one.get_type_name() == "Constant"]
    return Counter(one.get_element_type().get_type_name() for one in constants if len(one.get_output_shape(0)) == 2)


def test_float_at_other_sizes(model, source):
    assert sorted(path.name for path in source.parent.iterdir()) == ["model.bin", "model.xml"]
    runner = OpenVINORunner(source, threads=1)
    assert set(runner.inputs) == {"input_ids", "attention_mask"}
    for length, rows in [(9, 3), (1, 1), (20, 1), (5, 7)]:
        inputs = batch(length=length, rows=min(rows, length))
        assert np.abs(runner(inputs)["logits"] - predict(model.view(None), inputs)).max() < 1e-3


def test_a_fixed_shape(model, source):
    runner = OpenVINORunner(source, threads=1, shape=(3, 9))
    inputs = batch(length=9, rows=3)
    first = runner(inputs)["logits"]
    assert np.abs(first - predict(model.view(None), inputs)).max() < 1e-3
    kept = first.copy()
    runner({name: tensor.flip(0) for name, tensor in inputs.items()})
    assert np.array_equal(first, kept)  # answers are not overwritten by the next call
    with pytest.raises(RuntimeError, match=r"input \(shape=\[3,9\]\)"):
        runner(batch(length=9, rows=1))


def test_int8_weights_and_int8_with_calibration(model, source, tmp_path):
    compressed = compress_openvino(source, tmp_path / "weights.xml")
    rows = [{name: tensor[:1] for name, tensor in batch(seed=seed).items()} for seed in range(4)]
    quantized = quantize_openvino(source, tmp_path / "static.xml", rows)
    assert weight_types(source)["i8"] == 0
    assert weight_types(compressed)["i8"] >= LAYERS * 6
    assert weight_types(quantized)["i8"] >= LAYERS * 6
    assert 0 < error_of(model, compressed) < error_of(model, quantized) < 0.15
    weights = [path.with_suffix(".bin").stat().st_size for path in (source, compressed, quantized)]
    assert weights[0] > 2 * weights[1]
    assert weights[0] > 2 * weights[2]


def test_formats(model, tmp_path):
    names = ["openvino", "openvino-int8", "openvino-int8-static"]
    calibration = [{"input_ids": row.tolist()} for seed in range(4) for row in batch(16, 4, seed)["input_ids"]]
    records = export_subnet(model, SUBNET, tmp_path / "out", names, calibration=calibration)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([".hf-elastic.json", *names])
    for name in names:
        files = sorted(path.name for path in (tmp_path / "out" / name).iterdir())
        assert set(FILES) | {"config.json", "parity.json"} <= set(files)
        assert records[name]["versions"].keys() >= {"openvino", "nncf"}
    assert records["openvino"]["max_relative_difference"] < 1e-4
    assert records["openvino-int8"]["max_abs_difference"] > records["openvino"]["max_abs_difference"]


@pytest.mark.slow
def test_a_decoder(tmp_path):
    torch.manual_seed(0)
    stock = randomize(AutoModelForCausalLM.from_config(config_of("llama", num_hidden_layers=LAYERS)))
    model = ElasticForCausalLM.from_base(stock, space={"num_hidden_layers": [1, LAYERS]})
    record = export_subnet(model, None, tmp_path / "out", ["openvino"])["openvino"]
    assert record["max_relative_difference"] < 1e-4


def test_runs_onnx_files(model, tmp_path):
    path = export_onnx(model.view(None), batch(rows=2), tmp_path / "model.onnx")
    assert error_of(model, path) < 1e-5


@pytest.mark.skipif(ON_TRANSFORMERS_5, reason="optimum-intel 1.27 is for transformers 4.57")
def test_optimum_intel_reads_it(model, tmp_path):
    intel = pytest.importorskip("optimum.intel", reason="optimum-intel is not installed")
    export_subnet(model, {"num_hidden_layers": 2}, tmp_path / "out", ["openvino"])
    loaded = intel.OVModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "openvino", ov_config={"INFERENCE_PRECISION_HINT": "f32"}
    )
    inputs = batch()
    expected = predict(model.view({"num_hidden_layers": 2}), inputs)
    assert np.abs(loaded(**inputs).logits.numpy() - expected).max() < 1e-3


def test_a_full_disk(model, source, tmp_path, monkeypatch):
    """OpenVINO says no more than that its stream failed."""

    def fail(_graph, path, **_options):
        Path(path).write_text("<net")
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", fail)
    with pytest.raises(OSError, match=r"the disk of .*out is full; nothing was written"):
        export_subnet(model, SUBNET, tmp_path / "out", ["openvino"])
    with pytest.raises(OSError, match=r"No space left on device: OpenVINO could not write .*some\.xml"):
        compress_openvino(source, tmp_path / "some.xml")
    assert list(tmp_path.iterdir()) == []


def test_bad_input(model, source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none\.xml is not a file"):
        OpenVINORunner(tmp_path / "none.xml")
    with pytest.raises(ValueError, match=r"needs the inputs \['attention_mask'\]; got \['input_ids'\]"):
        OpenVINORunner(source)({"input_ids": batch()["input_ids"]})
    with pytest.raises(ValueError, match="openvino-int8-static needs calibration"):
        export_subnet(model, None, tmp_path / "out", ["openvino-int8-static"])
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=rf"openvino-int8 needs nncf, .* pip install '{re.escape(EXTRA)}'"):
        export_subnet(model, None, tmp_path / "out", ["openvino-int8"])
    assert list(tmp_path.iterdir()) == []


def test_the_extra_pulls_what_draws_the_graph(monkeypatch):
    """On 4.57 that is Optimum, on 5.x onnxscript."""
    package = PACKAGES[-1]
    monkeypatch.setattr(format, "is_installed", lambda name: name != package)
    extra = re.escape("[openvino]" if ON_TRANSFORMERS_5 else "[openvino,optimum]")
    with pytest.raises(ImportError, match=rf"openvino needs {package}, .* pip install 'hf-elastic{extra}'"):
        ExportConfig(["openvino"])
